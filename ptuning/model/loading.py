"""Loads a language model and its tokenizer from a directory or the hub: device, precision.

A model that cannot be loaded raises a one-line error. Knows nothing of prompts or of what a model is used for.
"""

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers  # it loads each class on first access
from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging

from ptuning.errors import ModelError
from ptuning.files import read_regular
from ptuning.model.adapters import base_of_adapter, merged
from ptuning.model.fingerprint import Fingerprint
from ptuning.model.hub import hub_answers
from ptuning.model.kernels import prefer_own_attention
from ptuning.model.memory import is_out_of_memory

_MOST_INDEX_BYTES = 1 << 28

# What transformers itself implements; for other names it may run code that it finds on the hub.
_IMPLEMENTATIONS = {
    "_attn_implementation": (None, "eager", "sdpa", "flex_attention"),
    "_experts_implementation": (None, "eager", "batched_mm", "grouped_mm"),
}


def load(
    name: str, dtype: str, device: str, revision: str | None, trust_remote_code: bool, is_moved: bool = True
) -> tuple[Any, Any]:
    """Loads a causal or an encoder-decoder language model, and its tokenizer.

    Args:
        name: A model directory, the directory of a LoRA adapter that PEFT saved, or a hub name. An adapter is merged
            into the base that it names.
        dtype: float32, bfloat16, float16; auto: bfloat16 if the hardware computes in it, else float32; stored: as in
            the model's files.
        device: cpu, cuda, …; auto: the first accelerator if there is one.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Whether code that comes with the model may run.
        is_moved: Whether the model is moved to the device; it stays on the CPU to be quantized first.

    Raises:
        ModelError: If the model is missing or broken, does not fit into memory, or is to be quantized and is already.
    """
    base = base_of_adapter(name)
    if base is not None:
        model, tokenizer = load(base, dtype, device, revision, trust_remote_code, is_moved)
        return merged(model, name), tokenizer
    target = device_named(device)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        _require_own_shards(name)
        options |= _of_hub(name)
        with quietly():
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
            config = _config(name, options)
            is_quantized = getattr(config, "quantization_config", None) is not None
            kind: Any = (
                transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
            )
            if is_quantized:  # some libraries pack weights for a device, and refuse to move them later
                options["device_map"] = {"": target}
            loaded = kind.from_pretrained(name, dtype=_dtype(dtype, target), output_loading_info=True, **options)
    except Exception as error:  # transformers, safetensors and json each raise their own errors
        raise cannot_load(name, str(error)) from error
    model, info = loaded
    _require_ids(name, model, tokenizer)
    if info["missing_keys"]:
        raise cannot_load(name, f"it lacks weights such as {min(info['missing_keys'])}")
    if is_quantized and not is_moved:
        raise ModelError(
            f"model.quantization with {name}, whose weights are quantized already",
            "a model with whole weights",
            "Set model.quantization to none",
        )
    if is_quantized:
        _keep_gradients(model)
    elif is_moved:
        with fitting(name, target):
            model = model.to(target)
    if target.type in ("cpu", "cuda"):
        prefer_own_attention(model)
    return model, tokenizer


def load_embeddings(
    name: str, dtype: str, device: str, revision: str | None, trust_remote_code: bool
) -> tuple[Any, Any, Fingerprint] | None:
    """Like `load`, but reads only the input embeddings of a causal model; its other weights stay empty.

    Without its layers, the model cannot be checked to be causal.

    Returns:
        The model, its tokenizer, and the whole model's fingerprint, sampled from the files. None if the whole model has
        to be loaded: its files name parameters differently or hold quantized weights, or it is an encoder-decoder.

    Raises:
        ModelError: As in `load`.
    """
    from accelerate import init_empty_weights

    if base_of_adapter(name) is not None:
        return None
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    target = device_named(device)
    try:
        _require_own_shards(name)
        options |= _of_hub(name)
        files = _tensor_files(name, revision, options.get("local_files_only", False))
        if not files:
            return None
        with quietly():
            config = _config(name, options)
            if config.is_encoder_decoder or getattr(config, "quantization_config", None) is not None:
                return None
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
            with init_empty_weights(include_buffers=False):
                model = transformers.AutoModelForCausalLM.from_config(
                    config, dtype=_dtype(dtype, target), trust_remote_code=trust_remote_code
                )
            model.tie_weights()  # a head tied to the embeddings has no tensor in the files
            module = model.get_input_embeddings()
            names = {id(each): key for key, each in model.named_parameters()}
            if not set(names.values()) <= set(files) or [key for key, _ in module.named_parameters()] != ["weight"]:
                return None
            fingerprint = Fingerprint.of(model, lambda key: _OnDisk(files[key], key))
            key = names[id(module.weight)]
            with safe_open(files[key], "pt") as tensors:
                weight = tensors.get_tensor(key)
            if weight.shape != module.weight.shape:
                return None
            module.weight = nn.Parameter(weight.to(target, module.weight.dtype))
    except Exception as error:  # as in `load`
        raise cannot_load(name, str(error)) from error
    _require_ids(name, model, tokenizer)
    return model, tokenizer, fingerprint


def _require_own_shards(name: str) -> None:
    """Raises `ValueError` for a model directory whose index names files outside it."""
    for index in Path(name).glob("*.index.json"):
        placed = json.loads(read_regular(index, _MOST_INDEX_BYTES)).get("weight_map", {})
        for file in sorted(set(map(str, placed.values()))):
            if Path(file).is_absolute() or ".." in Path(file).parts:
                raise ValueError(f"its {index.name} names the file {file}, which is outside the directory")


def _of_hub(name: str) -> dict[str, Any]:
    """How to look a name up: where the hub does not answer, only what is there already is read."""
    return {} if os.path.exists(name) or hub_answers() else {"local_files_only": True}


def _config(name: str, options: dict[str, Any]) -> Any:
    """A model's configuration; raises `ValueError` where it asks for code from the hub."""
    config = transformers.AutoConfig.from_pretrained(name, **options)
    parts = [config, *(getattr(config, each, None) for each in getattr(config, "sub_configs", {}))]
    for part, (key, known) in itertools.product(parts, _IMPLEMENTATIONS.items()):
        wanted = getattr(part, key, None)
        if not options["trust_remote_code"] and wanted not in known:
            raise ValueError(f"its config.json asks for {key} {wanted!r}, which may be code from elsewhere")
    return config


class _OnDisk:
    """A tensor in a file, read one value at a time."""

    def __init__(self, file: Path, key: str) -> None:
        self._file, self._key = file, key

    def __getitem__(self, place: tuple[int, ...]) -> Tensor:
        with safe_open(self._file, "pt") as tensors:
            return tensors.get_slice(self._key)[tuple(slice(i, i + 1) for i in place)]


def _tensor_files(name: str, revision: str | None, is_local: bool) -> dict[str, Path]:
    """The safetensors file of each tensor of a model directory or hub model; empty if it has no such files."""

    def found(file: str) -> Path | None:
        try:
            options = {"revision": revision, "local_files_only": is_local}
            path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **options)
        except OSError:  # no such model
            return None
        return Path(path) if path else None

    index = found(SAFE_WEIGHTS_INDEX_NAME)
    if index is not None:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        paths = {file: found(file) for file in set(placed.values())}
        return {key: path for key, file in placed.items() if (path := paths[file])}
    single = found(SAFE_WEIGHTS_NAME)
    if single is None:
        return {}
    with safe_open(single, "pt") as tensors:
        return dict.fromkeys(tensors.keys(), single)


def _keep_gradients(model: Any) -> None:
    """Keeps bitsandbytes' 4-bit layers differentiable on CPUs.

    When such a layer is first run without a gradient, bitsandbytes 0.50 packs its weight for a CPU kernel that gives
    no gradient ever after, without an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def fitting(name: str, target: torch.device) -> Iterator[None]:
    """Raises `ModelError` if the device has too little memory for a model."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"model {name}, too large for the memory of {target}",
            "a model that fits",
            "Set model.quantization to int8 or int4, or model.dtype to bfloat16",
        ) from error


def cannot_load(name: str, reason: str) -> ModelError:
    """The error for a model that is missing, broken or of the wrong kind."""
    what = f"model directory {name}" if os.path.isdir(name) else f"model {name}, no directory here,"
    return ModelError(
        f"{what} cannot be loaded ({reason})",
        "a directory with a complete language model, or a hub model's name",
        "Check the name and the files in it",
    )


def _require_ids(name: str, model: Any, tokenizer: Any) -> None:
    """Raises `ModelError` if the tokenizer has ids without an embedding in the model."""
    num_embeddings, highest = model.get_input_embeddings().num_embeddings, _highest_id(tokenizer)
    if highest >= num_embeddings:
        raise cannot_load(name, f"its tokenizer has the id {highest} and the model {num_embeddings} embeddings")


def _highest_id(tokenizer: Any) -> int:
    """The highest id that text can have; special tokens of other modalities may lie beyond the embeddings."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return max(set(tokenizer.get_vocab().values()) - special)


@contextmanager
def quietly() -> Iterator[None]:
    """Silences transformers' warnings and progress bars, so an error stays one line; downloads still show."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    hook = logging.set_tqdm_hook(lambda bar, args, options: bar(*args, **{**options, "disable": True}))
    try:
        yield
    finally:
        logging.set_tqdm_hook(hook)
        logging.set_verbosity(level)


def device_named(device: str) -> torch.device:
    """The device of that name; auto: the first accelerator if there is one. Raises `ModelError` if it is not there."""
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"device {device} ({error})", "a device of this machine", "Use auto or cpu") from None
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def _dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    if dtype == "stored":
        return "auto"  # transformers' name for it
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    return torch.bfloat16 if _computes_bfloat16(device) else torch.float32


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16; emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
