"""Base models with a LoRA adapter of PEFT: merged where they are loaded, unwrapped where a program made them.

Knows nothing of soft prompts. PEFT is needed for adapters alone.
"""

import importlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

from ptuning.errors import FileError, ModelError
from ptuning.files import read_regular

_CONFIG = "adapter_config.json"
_MOST_BYTES = 1 << 26


def base_of_adapter(name: str) -> str | None:
    """The base model that an adapter's directory names; None for any other directory or name.

    Raises:
        ModelError: For a directory of a soft prompt, or of an adapter that names no base.
    """
    file = Path(name) / _CONFIG
    if not os.path.isfile(file) or os.path.exists(Path(name) / "config.json"):  # False for a name too long, too
        return None
    try:
        config = json.loads(read_regular(file, _MOST_BYTES))
        kind, base = str(config["peft_type"]), config["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, RecursionError, FileError) as error:
        raise ModelError(f"{file} cannot be read ({error!r})", "an adapter's config", "Save it again") from error
    if kind != "LORA" or not isinstance(base, str) or not base:
        raise ModelError(
            f"{name}, an adapter of kind {kind} of the base {base!r}",
            "a model's directory, or that of a LoRA adapter that names its base",
            "Name the base model",
        )
    return base


def merged(model: Any, directory: str) -> Any:
    """The model with an adapter's weights added to its own; raises `ModelError` where that cannot be done."""
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise ModelError(f"{directory}, a LoRA adapter, without peft", "peft", "pip install peft") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT uses names that transformers will remove
            whole = peft.PeftModel.from_pretrained(model, directory).merge_and_unload(safe_merge=True)
    except Exception as error:  # peft, safetensors and torch each raise their own errors
        told = f"the adapter {directory} does not fit its base ({' '.join(str(error).split())[:200]})"
        raise ModelError(told, "its own base", "Check the base that its config names") from error
    return whole.requires_grad_(False)


def unwrapped(model: Any) -> Any:
    """The model inside a `PeftModel`, its LoRA layers in place; any other model itself."""
    get = getattr(model, "get_base_model", None)
    if get is None or not hasattr(model, "peft_config"):
        return model
    kinds = {str(each.peft_type).rpartition(".")[2] for each in model.peft_config.values()}
    if kinds != {"LORA"}:
        raise ModelError(f"a PeftModel of kind {', '.join(sorted(kinds))}", "one with LoRA", "Give the base model")
    return get()
