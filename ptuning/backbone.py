"""The frozen causal language model and its tokenizer: load, freeze, fingerprint, embed.

Knows nothing of prompts, tasks or training.
"""

import hashlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin
from transformers.utils import logging

from ptuning.errors import ModelError
from ptuning.fingerprint import Fingerprint

_EMBED_CHUNK = 8192  # tokens embedded at a time
_SAME = 1e-2  # of the largest logit: more than rounding makes in any precision


class Backbone:
    """A frozen causal language model with its tokenizer.

    The model is put into eval mode and no parameter requires a gradient; nothing else about it is changed.

    Args:
        model: A transformers model with a language-modelling head.
        tokenizer: Its tokenizer.
        name: What a saved prompt records as its base; None: the model's own `name_or_path`.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name or model.name_or_path
        self._accepted = inspect.signature(model.forward).parameters

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        dtype: str = "auto",
        device: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> "Backbone":
        """Loads a model directory or a hub model.

        Args:
            name_or_path: A model directory, or a hub name.
            dtype: float32, bfloat16, float16; auto: bfloat16 where the hardware computes in it, else float32.
            device: cpu, cuda, …; auto: the first accelerator if there is one.
            revision: Branch, tag or commit of a hub model.
            trust_remote_code: Whether code that comes with the model may run.

        Raises:
            ModelError: When it is missing or broken.
        """
        name = str(name_or_path)
        place = _device(device)
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        try:
            with _quietly():
                tokenizer = AutoTokenizer.from_pretrained(name, **options)
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    name, dtype=_dtype(dtype, place), output_loading_info=True, **options
                )
        except Exception as error:  # transformers, safetensors and json each raise their own kinds
            raise _cannot_load(name, str(error)) from error
        model, info = loaded
        num_embeddings = model.get_input_embeddings().num_embeddings
        highest = _highest_id(tokenizer)
        if highest >= num_embeddings:
            raise _cannot_load(name, f"its tokenizer has the id {highest} and the model {num_embeddings} embeddings")
        if info["missing_keys"]:
            raise _cannot_load(name, f"it lacks weights such as {min(info['missing_keys'])}")
        backbone = cls(model.to(place), tokenizer, name)
        if not backbone.is_causal():
            raise _cannot_load(name, "its tokens see those that come after them")
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
    def text_config(self) -> Any:
        """The configuration of the text model."""
        return self.model.config.get_text_config()

    @property
    def width(self) -> int:
        """H, the width of an embedding."""
        return self.model.get_input_embeddings().embedding_dim

    @property
    def max_positions(self) -> int | None:
        """Positions the model was made for; None where it has no limit."""
        return getattr(self.text_config, "max_position_embeddings", None)

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

    @cached_property
    def shares_prefix(self) -> bool:
        """Whether a prefix run once can be repeated for many rows: no layer but attention, no running state."""
        if getattr(self.model, "_is_stateful", False) or "past_key_values" not in self._accepted:
            return False
        return all(
            isinstance(layer, DynamicLayer) and not isinstance(layer, LinearAttentionCacheLayerMixin)
            for layer in DynamicCache(config=self.model.config).layers
        )

    @torch.no_grad()
    def is_causal(self) -> bool:
        """Whether a token's logits are the same whatever follows it; an encoder such as BERT would read the answer."""
        ids_BT = torch.tensor([[1, 2], [1, 3]], device=self.device)
        positions_BT = torch.tensor([[0, 1], [0, 1]], device=self.device)
        logits_BV = self.run(inputs_embeds=self.embed(ids_BT), position_ids=positions_BT).logits[:, 0].float()
        return bool((logits_BV[0] - logits_BV[1]).abs().max() <= _SAME * logits_BV.abs().max())

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings, `[..., H]` of ids `[...]`, exactly as the model makes them itself."""
        return self.model.get_input_embeddings()(ids)

    def run(self, *, position_ids: Tensor, **inputs: Any) -> Any:
        """The model's forward with explicit positions, where the architecture takes them (ALiBi models do not)."""
        if "position_ids" in self._accepted:
            inputs["position_ids"] = position_ids
        return self.model(**inputs)

    def new_cache(self) -> DynamicCache:
        """An empty key-value cache for one forward; a forward changes it, so each needs its own."""
        return DynamicCache(config=self.model.config)

    def weights_sha256(self) -> str:
        """SHA-256 over all weights' bytes in the order of their names: equal before and after any use of ours."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def _highest_id(tokenizer: Any) -> int:
    """The highest id that text can have: special tokens of other modalities may stand beyond the embeddings."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return max(set(tokenizer.get_vocab().values()) - special)


@contextmanager
def _quietly() -> Iterator[None]:
    """Holds transformers' warnings and progress bars back, so that a mistake is told in one line; downloads show."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    hook = logging.set_tqdm_hook(lambda bar, args, options: bar(*args, **{**options, "disable": True}))
    try:
        yield
    finally:
        logging.set_tqdm_hook(hook)
        logging.set_verbosity(level)


def _device(device: str) -> torch.device:
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"device {device} ({error})", "a device of this machine", "Use auto or cpu") from None
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    return torch.bfloat16 if _computes_bfloat16(device) else torch.float32


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively; emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def _cannot_load(name: str, reason: str) -> ModelError:
    what = f"model directory {name}" if Path(name).is_dir() else f"model {name}, no directory here,"
    return ModelError(
        f"{what} cannot be loaded ({reason})",
        "a directory with a whole causal language model, or a hub model's name",
        "Check the name and the files in it",
    )
