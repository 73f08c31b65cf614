"""The frozen language model and its tokenizer: embed, read a batch, write answers, tell what it can do.

One small protocol, a class a family: `CausalBackbone` reads question and answer as one sequence,
`EncoderDecoderBackbone` reads the question with its encoder and answers with its decoder. What stands above works
through the protocol. Knows nothing of prompts or training.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ptuning.data.batches import Batch, collate, collate_pairs, positions
from ptuning.data.coder import Coder
from ptuning.data.examples import Example
from ptuning.data.sampling import FEWEST_BATCHES
from ptuning.data.task import Task
from ptuning.errors import DataError, ModelError
from ptuning.model import capabilities as probes
from ptuning.model import checkpointing
from ptuning.model.fingerprint import Fingerprint, sha256_of
from ptuning.model.loading import cannot_load, load, load_embeddings, quantize_int8

_EMBED_CHUNK = 8192  # tokens embedded at a time
OVERHEAD_TOKENS = 80  # about what SmolLM2-135M reads in the time that one run more takes, on 2 cores
_OPTIONAL = ("attention_mask", "position_ids")  # what an architecture may not take: ALiBi models number no positions


class Backbone(ABC):
    """A frozen language model with its tokenizer; `Backbone.of` makes the right kind for a model.

    The model is put into eval mode and no parameter requires a gradient; nothing else about it is changed.

    Args:
        model: A transformers model with a language-modelling head.
        tokenizer: Its tokenizer.
        name: What a saved prompt records as its base; None: the model's own `name_or_path`.
    """

    task_type: ClassVar[str]
    """What PEFT calls the family."""
    side_to_write: ClassVar[str]
    """Where rows are padded that are to be continued."""

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name or model.name_or_path
        self._accepted = inspect.signature(model.forward).parameters

    @staticmethod
    def of(model: Any, tokenizer: Any, name: str | None = None) -> "Backbone":
        """The backbone of a model that is loaded already; arguments as above."""
        kind = EncoderDecoderBackbone if model.config.is_encoder_decoder else CausalBackbone
        return kind(model, tokenizer, name)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        dtype: str = "auto",
        device: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        quantization: str = "none",
    ) -> "Backbone":
        """Loads a model directory or a hub model.

        Args:
            name_or_path: A model directory, or a hub name.
            dtype: float32, bfloat16, float16; auto: bfloat16 where the hardware computes in it, else float32.
            device: cpu, cuda, …; auto: the first accelerator if there is one.
            revision: Branch, tag or commit of a hub model.
            trust_remote_code: Whether code that comes with the model may run.
            quantization: none, or int8: the frozen weights as 8-bit whole numbers (torchao).

        Raises:
            ModelError: When it is missing or broken, or reads what follows a token.
        """
        name = str(name_or_path)
        model, tokenizer = load(name, dtype, device, revision, trust_remote_code)
        backbone = cls.of(model, tokenizer, name)
        if isinstance(backbone, CausalBackbone) and not backbone.is_causal:
            raise cannot_load(name, "its tokens see those that come after them")
        if quantization == "int8":
            backbone.fingerprint  # noqa: B018 - that of the model as it came, whose prompts are this one's too
            quantize_int8(model)
        return backbone

    @classmethod
    def embeddings_of(
        cls,
        name_or_path: str | Path,
        dtype: str = "auto",
        device: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> "Backbone":
        """A backbone that can embed and no more: of the model's weights the input embeddings alone are read.

        The whole model is loaded where its files do not allow that. Arguments and errors as in `from_pretrained`.
        """
        options = (dtype, device, revision, trust_remote_code)
        found = load_embeddings(str(name_or_path), *options)
        if found is None:
            return cls.from_pretrained(name_or_path, *options)
        backbone = cls.of(*found[:2], str(name_or_path))
        backbone.__dict__["fingerprint"] = found[2]  # in place of the cached property's
        return backbone

    @property
    def device(self) -> torch.device:
        """Where the model's input embeddings are."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model's embeddings, and of what is spliced among them."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def width(self) -> int:
        """H, the width of an embedding."""
        return self.model.get_input_embeddings().embedding_dim

    @property
    def max_positions(self) -> int | None:
        """Positions the model was made for; None where it has no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def pad_id(self) -> int:
        """The id that fills rows; masked, so that any will do where the tokenizer names none."""
        return next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)

    @property
    def end_ids(self) -> list[int]:
        """The ids that end an answer: the tokenizer's, which training appends, and those of the model's own."""
        own = self.model.generation_config.eos_token_id
        ids = [self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
        return sorted({i for i in ids if i is not None})

    @cached_property
    def vocabulary_VH(self) -> Tensor:
        """The input embedding of every token, `[V, H]` in the model's precision, through its embedding module.

        Through the module and not its weight, because some architectures scale inside it.
        """
        ids_V = torch.arange(self.model.get_input_embeddings().num_embeddings, device=self.device)
        with torch.no_grad():
            return torch.cat([self.embed(chunk) for chunk in ids_V.split(_EMBED_CHUNK)])

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What a saved prompt knows its base model by."""
        return Fingerprint.of(self.model)

    @property
    def overhead_tokens(self) -> int:
        """What parting a batch must save, in tokens; nothing is saved where rows are laid end to end."""
        return OVERHEAD_TOKENS if self.device.type == "cpu" and not self.packs else FEWEST_BATCHES

    @property
    def shares_prefix(self) -> bool:
        """Whether leading tokens run once can stand before many rows."""
        return False

    @property
    def packs(self) -> bool:
        """Whether rows may be laid end to end, so that rows of all lengths fill a batch."""
        return False

    @property
    def heeds_mask(self) -> bool:
        """Whether rows may be continued together."""
        return True

    @property
    def begins_from_embeddings(self) -> bool:
        """Whether transformers can write with the model from embeddings."""
        return True

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings, `[..., H]` of ids `[...]`, exactly as the model makes them itself."""
        return self.model.get_input_embeddings()(ids)

    @abstractmethod
    def coder(self, task: Task) -> Coder:
        """Turns the task's rows into the examples that this model reads."""

    @abstractmethod
    def collate(self, examples: Sequence[Example], padding_side: str = "right") -> Batch:
        """Pads examples to a batch; no row's score depends on the side."""

    @abstractmethod
    def logits(self, embeddings_BTH: Tensor, batch: Batch) -> Tensor:
        """The reference run: every row whole. `[N, V]` fp32 at the batch's scored positions, in row order.

        Args:
            embeddings_BTH: Input embeddings of `batch.ids_BT`, virtual tokens in their places.
            batch: Rows on the backbone's device.
        """

    @abstractmethod
    def generate(self, embeddings_BTH: Tensor, ids_BT: Tensor, mask_BT: Tensor, **settings: Any) -> Tensor:
        """Writes after each row through transformers' own `generate`.

        Args:
            embeddings_BTH: Input embeddings of the rows, virtual tokens in their places.
            ids_BT: Their ids, padded on the left; negative ids are virtual tokens.
            mask_BT: 1 where a row has a token.
            settings: Options of `generate`; `past_key_values` may hold what leading columns were run to.

        Returns:
            The new tokens, `[B, N]`.
        """

    def require_room(self, num_tokens: int) -> None:
        """Raises `DataError` when rows of so many tokens are beyond the model's positions."""
        limit = self.max_positions
        if limit is not None and num_tokens > limit:
            raise DataError(
                f"a row of {num_tokens} tokens, virtual ones included",
                f"at most {limit}, the model's positions",
                "Shorten the text or the prompt",
            )

    def num_columns_before(self, ids_BT: Tensor) -> int:
        """How many columns stand before the new tokens in what transformers' `generate` writes."""
        return ids_BT.shape[1]

    def checkpointed(self) -> AbstractContextManager[None]:
        """While it lasts, layers are run again in the backward pass; raises `ModelError` where they cannot be."""
        return checkpointing.checkpointed(self.model)

    def weights_sha256(self) -> str:
        """SHA-256 over all weights' bytes in the order of their names: equal before and after any use of ours."""
        return sha256_of(self.model.state_dict())


class CausalBackbone(Backbone):
    """A causal language model: question and answer are one sequence."""

    task_type, side_to_write = "CAUSAL_LM", "left"

    @cached_property
    def cache_layers(self) -> list[Any]:
        """The layers of the model's key-value cache, empty; no layers where it keeps another state."""
        if getattr(self.model, "_is_stateful", False) or "past_key_values" not in self._accepted:
            return []
        return self.new_cache().layers

    @property
    def shares_prefix(self) -> bool:
        """Whether all layers are plain attention, so that keys and values are all there is to keep of a prefix."""
        kinds = {type(layer) for layer in self.cache_layers}
        return bool(kinds) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}

    @cached_property
    def window(self) -> int | None:
        """How many positions the shortest-sighted layer sees; None where all see everything."""
        windows = [each.sliding_window for each in self.cache_layers if each.is_sliding]
        local = getattr(self.model.config, "window_size", None)  # GPT-Neo's, of which its cache knows nothing
        return min([*windows, *([local] if isinstance(local, int) else [])], default=None)

    def sees_all(self, num_tokens: int) -> bool:
        """Whether every layer sees so many tokens."""
        return self.window is None or num_tokens <= self.window

    @cached_property
    def packs(self) -> bool:
        """Whether rows may be laid end to end in one line, each blind to the others, behind a kept prefix."""
        takes_positions = "position_ids" in self._accepted  # each row of a line begins anew
        return self.shares_prefix and takes_positions and probes.heeds_blocks(self)

    @cached_property
    def joins(self) -> bool:
        """Whether a prefix may be run in the same pass as the rows behind it."""
        return self.packs and probes.joins(self)

    @cached_property
    def is_causal(self) -> bool:
        """Whether no token sees those that come after it."""
        return probes.is_causal(self)

    @cached_property
    def heeds_mask(self) -> bool:
        """Whether rows may be continued together, padded in front."""
        return probes.heeds_mask(self)

    @cached_property
    def heeds_gaps(self) -> bool:
        """Whether padding may stand between a kept prefix and the rest of a row."""
        return probes.heeds_gaps(self)

    def coder(self, task: Task) -> Coder:
        """Turns the task's rows into examples."""
        return Coder(task, self.tokenizer, self.max_positions)

    def collate(self, examples: Sequence[Example], padding_side: str = "right") -> Batch:
        """Pads examples, question and answer in one sequence."""
        return collate(examples, self.pad_id, padding_side)

    def logits(self, embeddings_BTH: Tensor, batch: Batch) -> Tensor:
        """The model's own forward over embeddings, positions counted in each row."""
        return self.scored_logits(
            batch.scored_BT,
            inputs_embeds=embeddings_BTH,
            attention_mask=batch.mask_BT,
            position_ids=positions(batch.mask_BT),
            use_cache=False,
        )

    def scored_logits(self, scored_BT: Tensor, **inputs: Any) -> Tensor:
        """Logits `[N, V]` fp32 at the positions that are true, computed only there where the architecture can."""
        if "logits_to_keep" in self._accepted:
            return self.run(**inputs, logits_to_keep=scored_BT).logits.float()
        return self.run(**inputs).logits[scored_BT].float()

    def run(self, **inputs: Any) -> Any:
        """The model's forward, without those optional inputs that the architecture does not take."""
        return self.model(
            **{key: each for key, each in inputs.items() if key in self._accepted or key not in _OPTIONAL}
        )

    def fill(self, **inputs: Any) -> None:
        """Runs the model for the keys and values alone, which `past_key_values` takes up; no logits are made."""
        self.run(**inputs, logits_to_keep=torch.empty(0, dtype=torch.long, device=self.device))

    def new_cache(self) -> DynamicCache:
        """An empty key-value cache for one forward; a forward changes it, so each needs its own."""
        return DynamicCache(config=self.model.config)

    def generate(self, embeddings_BTH: Tensor, ids_BT: Tensor, mask_BT: Tensor, **settings: Any) -> Tensor:
        """Writes after each row; its own words count as written where an option looks at that (repetition penalty)."""
        is_text_BT = (mask_BT > 0) & (ids_BT >= 0)
        written_BN = self.model.generate(
            inputs_embeds=embeddings_BTH,
            input_ids=torch.where(is_text_BT, ids_BT, self._filling_id),
            attention_mask=mask_BT,
            **settings,
        )
        return written_BN[:, self.num_columns_before(ids_BT) :]

    @property
    def begins_from_embeddings(self) -> bool:
        """Whether transformers can write with the model from embeddings, and not from ids only."""
        return "inputs_embeds" in inspect.signature(self.model.prepare_inputs_for_generation).parameters

    @cached_property
    def _filling_id(self) -> int:
        """What stands for virtual tokens and padding where an option looks at the words: none that an answer holds."""
        special = [self.pad_id, *self.tokenizer.all_special_ids]
        return next((i for i in special if i not in self.end_ids), self.pad_id)


class EncoderDecoderBackbone(Backbone):
    """An encoder-decoder such as T5: its encoder reads prompt and question (Lester et al. 2021)."""

    task_type, side_to_write = "SEQ_2_SEQ_LM", "right"

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None) -> None:
        super().__init__(model, tokenizer, name)
        if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
            raise ModelError(
                f"{self.name}, whose {type(model).__name__} does not say how its decoder begins",
                "an encoder-decoder such as T5",
                "Choose another model",
            )

    def coder(self, task: Task) -> Coder:
        """Turns the task's rows into examples whose questions are closed by the tokenizer's end-of-text token."""
        return Coder(task, self.tokenizer, self.max_positions, closes=True)

    def collate(self, examples: Sequence[Example], padding_side: str = "right") -> Batch:
        """Pads examples, questions and answers apart."""
        return collate_pairs(examples, self.pad_id, padding_side)

    def logits(self, embeddings_BTH: Tensor, batch: Batch) -> Tensor:
        """The model's own forward: embeddings into the encoder, the answer so far into the decoder."""
        output = self.model(
            inputs_embeds=embeddings_BTH,
            attention_mask=batch.mask_BT,
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(labels=batch.labels_BT),
            use_cache=False,
        )
        return output.logits[batch.scored_BT].float()

    def generate(self, embeddings_BTH: Tensor, ids_BT: Tensor, mask_BT: Tensor, **settings: Any) -> Tensor:
        """Writes an answer to each row, the decoder's start token left out."""
        written_BN = self.model.generate(inputs_embeds=embeddings_BTH, attention_mask=mask_BT, **settings)
        return written_BN[:, self.num_columns_before(ids_BT) :]

    def num_columns_before(self, ids_BT: Tensor) -> int:
        """The decoder's start token alone."""
        return 1
