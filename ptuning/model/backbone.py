"""The frozen language model and its tokenizer: embed, read a batch, write answers, tell what it can do.

One small protocol, a class a family: `CausalBackbone` reads question and answer as one sequence,
`EncoderDecoderBackbone` reads the question with its encoder and answers with its decoder. What stands above works
through the protocol. Knows nothing of prompts or training.
"""

import copy
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ptuning.data import FEWEST_BATCHES, Batch, Coder, Example, Task
from ptuning.errors import DataError
from ptuning.model.checkpointing import checkpointing_model, is_checkpointed
from ptuning.model.fingerprint import Fingerprint, sha256_of
from ptuning.model.loading import load, load_embeddings, quantize_int8
from ptuning.model.twin import twin_of

_EMBED_CHUNK = 8192  # tokens embedded at a time


OVERHEAD_TOKENS = 80  # about what SmolLM2-135M reads in the time that one run more takes, on 2 cores


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
    generation_padding_side: ClassVar[str]
    """Where rows are padded that are to be continued."""
    _families: ClassVar[list[type["Backbone"]]] = []

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name or model.name_or_path
        self._accepted = inspect.signature(model.forward).parameters
        self._turns = threading.RLock()

    def __init_subclass__(cls) -> None:
        """A subclass is a family, found by `of` through what it `fits`."""
        Backbone._families.append(cls)

    @classmethod
    @abstractmethod
    def fits(cls, model: Any) -> bool:
        """Whether a transformers model is of this family."""

    @staticmethod
    def of(model: Any, tokenizer: Any, name: str | None = None) -> "Backbone":
        """The backbone of a model that is loaded already; arguments as above."""
        assert Backbone._families, "Backbone is to be imported from ptuning.model, which registers its families"
        family = next(each for each in Backbone._families if each.fits(model))
        return family(model, tokenizer, name)

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
        backbone.require_readable()
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

    @property
    def vocabulary_VH(self) -> Tensor:
        """The input embedding of every token, `[V, H]` in the model's precision, exactly as `embed` gives it.

        The model's own matrix, not a copy (nothing may be written to it), where its module looks rows up and no more.
        Where the module does more, as those that scale, the rows are made anew on each use, and nothing keeps them.
        """
        module = self.model.get_input_embeddings()
        if type(module) is nn.Embedding and "forward" not in vars(module) and not module._forward_hooks:
            return module.weight.detach()
        ids_V = torch.arange(module.num_embeddings, device=self.device)
        with torch.no_grad():
            return torch.cat([self.embed(chunk) for chunk in ids_V.split(_EMBED_CHUNK)])

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What a saved prompt knows its base model by."""
        return Fingerprint.of(self.model)

    @property
    def overhead_tokens(self) -> int:
        """What parting a batch must save, in tokens; nothing is saved where rows are laid end to end."""
        return OVERHEAD_TOKENS if self.device.type == "cpu" and not self.supports_packing else FEWEST_BATCHES

    def require_readable(self) -> None:  # noqa: B027 - most families read as they should
        """Raises `ModelError` when the model does not read as its family must."""

    @property
    def supports_prefix_cache(self) -> bool:
        """Whether leading tokens run once can stand before many rows."""
        return False

    @property
    def can_keep_prefix(self) -> bool:
        """Whether it can be done with this one: not where layers are run again in the backward pass."""
        return self.supports_prefix_cache and not is_checkpointed(self.model)

    @property
    def supports_packing(self) -> bool:
        """Whether rows may be laid end to end, so that rows of all lengths fill a batch."""
        return False

    @property
    def ignores_left_padding(self) -> bool:
        """Whether rows may be continued together."""
        return True

    @property
    def generates_from_embeddings(self) -> bool:
        """Whether transformers can write with the model from embeddings."""
        return True

    @cached_property
    def _changes_when_run(self) -> bool:
        """Whether the model keeps something of each run in its modules: rotary embeddings that follow the length."""
        kinds = (getattr(module, "rope_type", None) for module in self.model.modules())
        names = (name for kind in kinds for name in (kind.values() if isinstance(kind, dict) else [kind]) if name)
        return any("dynamic" in name or name == "longrope" for name in names)

    def in_turn(self) -> AbstractContextManager[Any]:
        """Threads wait here for one another where the model could not be run by several at once."""
        return self._turns if self._changes_when_run else nullcontext()

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

    def twin(self) -> Self:
        """A backbone of its own over the same weights: hooks and settings of its model are seen by no other user."""
        backbone = copy.copy(self)
        backbone.model = twin_of(self.model)
        return backbone

    def with_checkpointing(self) -> Self:
        """A backbone over the same weights whose layers are run again in the backward pass: less memory, slower.

        Raises:
            ModelError: When the model's layers cannot be run again one by one.
        """
        backbone = copy.copy(self)
        backbone.model = checkpointing_model(self.model)
        return backbone

    def weights_sha256(self) -> str:
        """SHA-256 over all weights' bytes in the order of their names: equal before and after any use of ours."""
        return sha256_of(self.model.state_dict())
