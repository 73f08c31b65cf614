"""The frozen language model and its tokenizer: embeds ids, reads batches, generates, and tells what it supports.

One small protocol with one class per family. `CausalBackbone` reads question and answer as one sequence;
`EncoderDecoderBackbone` reads the question with its encoder and answers with its decoder. Higher floors use the
protocol alone. Knows nothing of prompts or training.
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
from ptuning.model.adapters import merged, unwrapped
from ptuning.model.checkpointing import checkpointing_model, is_checkpointed
from ptuning.model.fingerprint import Fingerprint, sha256_of
from ptuning.model.loading import device_named, fitting, load, load_embeddings
from ptuning.model.quantization import quantize
from ptuning.model.twin import twin_of

_EMBED_CHUNK = 8192  # tokens embedded at a time

OVERHEAD_TOKENS = 80  # the cost of one more forward pass, in tokens; estimated for SmolLM2-135M on 2 cores


class Backbone(ABC):
    """A frozen language model with its tokenizer; `Backbone.of` builds the right subclass for a model.

    The model is put into eval mode and its parameters require no gradient. Nothing else about it is changed.

    Args:
        model: A transformers model with a language-modelling head.
        tokenizer: Its tokenizer.
        name: The name that a saved prompt records for its base; None: the model's own `name_or_path`.
    """

    task_type: ClassVar[str]
    """PEFT's name for the family."""
    generation_padding_side: ClassVar[str]
    """Padding side for generation."""
    _families: ClassVar[list[type["Backbone"]]] = []

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name or model.name_or_path
        self._accepted = frozenset(inspect.signature(model.forward).parameters)
        self._lock = threading.RLock()
        self._is_checkpointed = is_checkpointed(model)  # found out once: it looks at every module

    def __init_subclass__(cls) -> None:
        """Registers the subclass as a family, which `of` finds through `fits`."""
        Backbone._families.append(cls)

    @classmethod
    @abstractmethod
    def fits(cls, model: Any) -> bool:
        """Whether a transformers model belongs to this family."""

    @staticmethod
    def of(model: Any, tokenizer: Any, name: str | None = None) -> "Backbone":
        """Builds the backbone for a loaded model; arguments as above."""
        assert Backbone._families, "import Backbone from ptuning.model, which registers the families"
        model = unwrapped(model)
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
            name_or_path: A model directory, that of a LoRA adapter (merged into the base that it names), or a hub name.
            dtype: float32, bfloat16, float16; auto: bfloat16 if the hardware computes in it, else float32; stored: as
                in the model's files.
            device: cpu, cuda, …; auto: the first accelerator if there is one.
            revision: Branch, tag or commit of a hub model.
            trust_remote_code: Whether code that comes with the model may run.
            quantization: none; int8 or int4: the frozen weights of linear layers in 8 bits each, or in 5 (a 4-bit
                integer and its share of the group's scale), with torchao. The device needs no room for the whole
                weights; the CPU does.

        Raises:
            ModelError: If the model is missing or broken, does not fit into the device's memory, or its tokens see
                later tokens.
        """
        name = str(name_or_path)
        model, tokenizer = load(name, dtype, device, revision, trust_remote_code, is_moved=quantization == "none")
        backbone = cls.of(model, tokenizer, name)
        backbone.require_readable()
        if quantization != "none":
            backbone.fingerprint  # noqa: B018 - taken before quantization, so prompts fit all of them
            target = device_named(device)
            with fitting(name, target):
                quantize(model, quantization, target)
        return backbone

    def with_adapter(self, directory: str | Path) -> "Backbone":
        """The model with a LoRA adapter that PEFT saved merged into its weights, which are changed.

        Args:
            directory: The adapter's; which base it names does not count.

        Raises:
            ModelError: Where it does not fit, or PEFT is missing.
        """
        return Backbone.of(merged(self.model, str(directory)), self.tokenizer, str(directory))

    @classmethod
    def embeddings_of(
        cls,
        name_or_path: str | Path,
        dtype: str = "auto",
        device: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> "Backbone":
        """A backbone that can only embed: it reads the model's input embeddings and no other weights.

        Loads the whole model if its files do not allow that. Arguments and errors as in `from_pretrained`.
        """
        found = load_embeddings(str(name_or_path), dtype, device, revision, trust_remote_code)
        if found is None:
            return cls.from_pretrained(name_or_path, dtype, device, revision, trust_remote_code)
        model, tokenizer, fingerprint = found
        backbone = cls.of(model, tokenizer, str(name_or_path))
        backbone.__dict__["fingerprint"] = fingerprint  # fills the cached property
        return backbone

    @property
    def device(self) -> torch.device:
        """The device of the model's input embeddings."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model's input embeddings, and of the virtual tokens put among them."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def width(self) -> int:
        """H, the width of an embedding."""
        return self.model.get_input_embeddings().embedding_dim

    @property
    def max_positions(self) -> int | None:
        """The number of positions that the model supports; None if it has no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def pad_id(self) -> int:
        """The padding id. Padding is masked, so any id will do if the tokenizer has none."""
        return next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)

    @property
    def end_ids(self) -> list[int]:
        """The ids that end an answer: the tokenizer's, which training appends, and the model's own."""
        own = self.model.generation_config.eos_token_id
        ids = [self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
        return sorted({i for i in ids if i is not None})

    @property
    def vocabulary_VH(self) -> Tensor:
        """The input embedding of every token, `[V, H]` in the model's precision, exactly as `embed` returns it.

        If the embedding module only looks rows up, this is the model's own matrix and not a copy: do not write to it.
        If the module does more (some scale the rows), the matrix is computed on each access and not kept.
        """
        module = self.model.get_input_embeddings()
        if type(module) is nn.Embedding and "forward" not in vars(module) and not module._forward_hooks:
            return module.weight.detach()
        ids_V = torch.arange(module.num_embeddings, device=self.device)
        with torch.no_grad():
            return torch.cat([self.embed(chunk) for chunk in ids_V.split(_EMBED_CHUNK)])

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Identifies the model as the base of a saved prompt."""
        return Fingerprint.of(self.model)

    @property
    def overhead_tokens(self) -> int:
        """The padding, in tokens, that splitting a batch must save; packed rows have none, so they are not split."""
        return OVERHEAD_TOKENS if self.device.type == "cpu" and not self.supports_packing else FEWEST_BATCHES

    def require_readable(self) -> None:  # noqa: B027 - most families need no check
        """Raises `ModelError` if the model does not read rows as its family must."""

    def require_trainable(self) -> None:  # noqa: B027 - most families need no check
        """Raises `ModelError` if the gradient does not reach the embeddings as it should."""

    @property
    def supports_prefix_cache(self) -> bool:
        """Whether a prefix that is run once can serve many rows."""
        return False

    @property
    def can_keep_prefix(self) -> bool:
        """Whether this backbone can keep a prefix: it must support that, and run without activation checkpointing."""
        is_checkpointed_now = self._is_checkpointed or (self.model.training and is_checkpointed(self.model))
        return self.supports_prefix_cache and not is_checkpointed_now

    @property
    def supports_packing(self) -> bool:
        """Whether rows can be packed end to end in one line."""
        return False

    @property
    def ignores_left_padding(self) -> bool:
        """Whether left padding changes nothing, so rows of different lengths can be generated together."""
        return True

    @property
    def generates_from_embeddings(self) -> bool:
        """Whether transformers can generate from input embeddings with this model."""
        return True

    @property
    def capabilities(self) -> dict[str, bool]:
        """What the model can do, by name: it decides which path is taken. What is not known yet is found out."""
        return {"generates_from_embeddings": self.generates_from_embeddings}

    @cached_property
    def _changes_when_run(self) -> bool:
        """Whether a run changes the model's modules, as rotary embeddings that depend on the length do."""
        kinds = (getattr(module, "rope_type", None) for module in self.model.modules())
        names = (name for kind in kinds for name in (kind.values() if isinstance(kind, dict) else [kind]) if name)
        return any("dynamic" in name or name == "longrope" for name in names)

    def in_turn(self) -> AbstractContextManager[Any]:
        """A lock for models that only one thread may run at a time; for other models it does nothing."""
        return self._lock if self._changes_when_run else nullcontext()

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings `[..., H]` of ids `[...]`, exactly as the model computes them."""
        return self.model.get_input_embeddings()(ids)

    @abstractmethod
    def coder(self, task: Task) -> Coder:
        """The coder that turns the task's rows into examples for this model."""

    @abstractmethod
    def collate(self, examples: Sequence[Example], padding_side: str = "right") -> Batch:
        """Pads examples to a batch; the side does not change any row's logits."""

    @abstractmethod
    def logits(self, embeddings_BTH: Tensor, batch: Batch) -> Tensor:
        """Runs every row whole, and returns logits `[N, V]` fp32 at the batch's scored positions, in row order.

        Args:
            embeddings_BTH: Input embeddings of `batch.ids_BT`, virtual tokens in their places.
            batch: Rows on the backbone's device.
        """

    @abstractmethod
    def generate(self, embeddings_BTH: Tensor, ids_BT: Tensor, mask_BT: Tensor, **settings: Any) -> Tensor:
        """Generates after each row with transformers' own `generate`.

        Args:
            embeddings_BTH: Input embeddings of the rows, virtual tokens in their places.
            ids_BT: Their ids, padded on the left; negative ids are virtual tokens.
            mask_BT: 1 where a row has a token.
            settings: Options of `generate`; `past_key_values` may hold the keys and values of leading columns.

        Returns:
            The new tokens, `[B, N]`.
        """

    def require_room(self, num_tokens: int) -> None:
        """Raises `DataError` if a row of `num_tokens` tokens has more than the model has positions."""
        limit = self.max_positions
        if limit is not None and num_tokens > limit:
            raise DataError(
                f"a row of {num_tokens} tokens, including virtual tokens",
                f"at most {limit}, the model's positions",
                "Shorten the text or the prompt",
            )

    def num_columns_before(self, ids_BT: Tensor) -> int:
        """The number of columns before the new tokens in the output of transformers' `generate`."""
        return ids_BT.shape[1]

    def twin(self) -> Self:
        """Another backbone over the same weights; hooks and settings of its model do not affect this one."""
        backbone = copy.copy(self)
        backbone.model = twin_of(self.model)
        return backbone

    def with_checkpointing(self) -> Self:
        """A backbone over the same weights with activation checkpointing: it takes less memory and more time.

        Raises:
            ModelError: If the model has no layers that support checkpointing.
        """
        backbone = copy.copy(self)
        backbone.model, backbone._is_checkpointed = checkpointing_model(self.model), True
        return backbone

    def weights_sha256(self) -> str:
        """SHA-256 of all weights' bytes, ordered by name. No use of the backbone changes it."""
        return sha256_of(self.model.state_dict())
