"""A saved prompt's directory: a PEFT adapter plus `ptuning.json` and a model card, read and written.

Knows nothing of models.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ptuning.data import Task
from ptuning.errors import ConfigError, PromptError
from ptuning.model import Fingerprint

FORMAT_VERSION = 1


WEIGHTS_FILE, PEFT_FILE, OWN_FILE, CARD_FILE, ENCODER_FILE = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "ptuning.json",
    "README.md",
    "encoder.safetensors",
)


_LEADS = "All virtual tokens stand before the text, so this directory is also a PEFT prompt-tuning adapter."


_DOES_NOT_LEAD = "Its virtual tokens do not all stand before the text, so it is no PEFT adapter: load it with ptuning."


_IS_CONDITIONED = "It makes each row its own prompt from its text, so it is no PEFT adapter: load it with ptuning."


_TENSOR = "prompt_embeddings"


_PEFT_TYPES = ("PROMPT_TUNING", "P_TUNING")


_TASK_TYPES = ("CAUSAL_LM", "SEQ_2_SEQ_LM")


@dataclass(frozen=True)
class Summary:
    """What a saved prompt's JSON tells, its numbers left unread."""

    num_virtual_tokens: int | None
    """P."""
    task: Task | None
    """How rows become text."""
    results: Mapping[str, Mapping[str, Any]]
    """What was measured."""
    base_name: str | None
    """The base model."""
    revision: str | None
    """Its revision."""

    @classmethod
    def read(cls, directory: Path) -> "Summary":
        """Reads it; raises `PromptError` where it is missing or broken."""
        known = _read_fields(directory)
        fields = ("num_virtual_tokens", "task", "results", "base_name", "revision")
        return cls(**{"task": None, "results": {}, **{key: known[key] for key in fields if key in known}})


def is_prompt_directory(path: Path) -> bool:
    """Whether a directory looks like a saved prompt of ours, or like a soft prompt of PEFT's."""
    if (path / OWN_FILE).is_file():
        return True
    try:
        return _read_json(path / PEFT_FILE).get("peft_type") in _PEFT_TYPES
    except PromptError:
        return False


def _require_replaceable(path: Path) -> None:
    """Raises `PromptError` when something other than a saved prompt would be replaced."""
    held = {each.name for each in path.iterdir()} if path.is_dir() else {path.name} if path.exists() else set()
    strange = held - {WEIGHTS_FILE, PEFT_FILE, OWN_FILE, CARD_FILE, ENCODER_FILE}
    if strange:
        raise PromptError(
            f"{path} holds {min(strange)}, which is no part of a saved prompt",
            "a new or empty directory, or a saved prompt's",
            "Choose another directory",
        )


def _plain(tensor: Tensor) -> Tensor:
    """A copy of its own, fp32 on the CPU: a saved prompt does not change with further training."""
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(_plain(tensor).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.exists():
        raise PromptError(
            f"{file.parent} has no {file.name}", "a saved prompt's directory", "Check the path, or save it again"
        )
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise _broken(file, str(error)) from error


def _read_embeddings(path: Path) -> Tensor:
    """The `[P, H]` tensor of a prompt directory."""
    file = path / WEIGHTS_FILE
    tensors = _read_tensors(file)
    if list(tensors) != [_TENSOR] or tensors[_TENSOR].ndim != 2:
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise PromptError(
            f"{file} holds {str(shapes)[:200]}",
            f"one tensor {_TENSOR} [P, H]",
            "Give a soft prompt, not another kind of adapter",
        )
    return tensors[_TENSOR].float()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(file, str(error)) from error
    if not isinstance(content, dict):
        raise _broken(file, f"it holds a {type(content).__name__}")
    return content


def _read_fields(path: Path) -> dict[str, Any]:
    """What a saved prompt's JSON tells: fields of `SoftPrompt`, num_virtual_tokens and, of ours, embeddings_sha256."""
    return _read_own(path) if (path / OWN_FILE).exists() else _read_peft(path)


def _read_peft(path: Path) -> dict[str, Any]:
    config = _read_json(path / PEFT_FILE)
    kind, task_type = config.get("peft_type"), config.get("task_type") or "CAUSAL_LM"
    if kind not in _PEFT_TYPES or task_type not in _TASK_TYPES:
        raise PromptError(
            f"{path} is a PEFT adapter of type {kind} for {task_type}",
            f"{' or '.join(_PEFT_TYPES)} for {' or '.join(_TASK_TYPES)}",
            "Give a soft prompt",
        )
    if config.get("num_transformer_submodules") not in (1, None):
        raise PromptError(
            f"{path} is a PEFT adapter with virtual tokens for the decoder too (num_transformer_submodules: 2)",
            "virtual tokens for the encoder alone, all that PEFT itself uses when it generates",
            "Train it with num_transformer_submodules=1",
        )
    return {
        "base_name": config.get("base_model_name_or_path"),
        "revision": config.get("revision"),
        "task_type": task_type,
        "num_virtual_tokens": config.get("num_virtual_tokens"),
    }


def _read_own(path: Path) -> dict[str, Any]:
    own = _read_json(path / OWN_FILE)
    if own.get("format_version") != FORMAT_VERSION:
        raise PromptError(
            f"{path / OWN_FILE} has format version {own.get('format_version')}", f"{FORMAT_VERSION}", "Upgrade ptuning"
        )
    try:
        print_ = own["base"]["fingerprint"]
        return {
            "task": Task(**own["task"]) if own["task"] else None,
            "base_name": own["base"]["name"],
            "fingerprint": Fingerprint(**{**print_, "weights": tuple(print_["weights"])}) if print_ else None,
            "revision": own["base"]["revision"],
            "task_type": own["base"].get("task_type", "CAUSAL_LM"),
            "num_virtual_tokens": own.get("num_virtual_tokens"),
            **{key: own[key] for key in ("encoder", "init", "training", "results", "library_version")},
            "embeddings_sha256": own["embeddings_sha256"],
        }
    except (KeyError, TypeError, ConfigError) as error:
        raise _broken(path / OWN_FILE, f"{type(error).__name__}: {error}") from error


def _broken(file: Path, reason: str) -> PromptError:
    return PromptError(f"{file} is truncated or broken ({reason})", "a whole saved prompt", "Save or copy it again")
