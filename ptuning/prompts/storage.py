"""Reads and writes a saved prompt's directory: a PEFT adapter plus `ptuning.json` and a model card.

Knows nothing of models.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from ptuning.data import Task
from ptuning.errors import ConfigError, FileError, PromptError
from ptuning.files import read_regular, whole_directory
from ptuning.model import Fingerprint
from ptuning.prompts import schema
from ptuning.prompts.model_card import model_card
from ptuning.sealed import BLANK, has_changed, seal
from ptuning.typed import read_json

FORMAT_VERSION = 2  # 2: each file holds its digest; 1: without
WEIGHTS_FILE = "adapter_model.safetensors"
PEFT_FILE = "adapter_config.json"
OWN_FILE = "ptuning.json"
CARD_FILE = "README.md"
RUN_PROMPT = "prompt"  # where a run's directory holds its prompt
ENCODER_FILE = "encoder.safetensors"
EMBEDDINGS = "prompt_embeddings"  # PEFT's name for the tensor
_PEFT_TYPES = ("PROMPT_TUNING", "P_TUNING")
_TASK_TYPES = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
MOST_JSON_BYTES = 1 << 24
MOST_TENSOR_BYTES = 1 << 30  # 1,000 virtual tokens of width 16,384 are 66 MB
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FILES = (OWN_FILE, PEFT_FILE, CARD_FILE, WEIGHTS_FILE, ENCODER_FILE)
_BLOBS = "blobs"  # where the hub's cache keeps what the files of its snapshots link to


@dataclass(frozen=True)
class Summary:
    """What a saved prompt's JSON says; its tensors are not read."""

    num_virtual_tokens: int | None
    """P."""
    task: Task | None
    """How rows become text."""
    results: Mapping[str, Mapping[str, Any]]
    """Name of an evaluation -> its metrics."""
    base_name: str | None
    """Directory or hub name of the base model."""
    revision: str | None
    """The base model's revision."""

    @classmethod
    def read(cls, directory: Path) -> "Summary":
        """Reads the summary of a saved prompt; raises `PromptError` if it is missing or broken."""
        known = _read_fields(directory)
        fields = ("num_virtual_tokens", "task", "results", "base_name", "revision")
        return cls(**{"task": None, "results": {}, **{key: known[key] for key in fields if key in known}})


def write(
    directory: Path,
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Any],
    peft: Mapping[str, Any] | None,
    placement: str,
    repository: str | None = None,
) -> None:
    """Writes a prompt's directory, replacing an older one as a whole.

    Args:
        directory: The directory to write.
        tensors: `{"prompt_embeddings": [P, H]}`, or the `state_dict` of an encoder that reads text.
        own: The content of `ptuning.json`, without the tensors' checksum and the format version.
        peft: The content of PEFT's configuration file; None for a prompt that PEFT cannot load.
        placement: A sentence for the model card on which other libraries can load the prompt.
        repository: Its name on the hub, for the model card.

    Raises:
        PromptError: If the directory holds anything but a saved prompt.
    """
    _require_replaceable(directory)
    own = {"format_version": FORMAT_VERSION, **own, "embeddings_sha256": _digest(tensors), "seal": BLANK}
    text = _own_text(own)
    with whole_directory(directory) as beside:
        file = beside / (WEIGHTS_FILE if EMBEDDINGS in tensors else ENCODER_FILE)
        plain_tensors = {name: each.clone().contiguous() for name, each in tensors.items()}
        save_file(plain_tensors, file, metadata={"format": "pt", "seal": BLANK})
        seal(file)
        if peft is not None:
            (beside / PEFT_FILE).write_text(json.dumps(peft, indent=2) + "\n", encoding="utf-8")
        (beside / OWN_FILE).write_text(text, encoding="utf-8", newline="\n")
        seal(beside / OWN_FILE)
        (beside / CARD_FILE).write_text(model_card(own, placement, repository), encoding="utf-8")


def _own_text(own: Mapping[str, Any]) -> str:
    """`ptuning.json` as text; raises `PromptError` for what could not be read back."""
    try:
        text = json.dumps(own, indent=2, allow_nan=False) + "\n"
        read_json(text.encode(), schema.Own)
    except (ValueError, TypeError) as error:
        raise PromptError(f"a prompt of which {OWN_FILE} cannot tell ({error})", "plain data", "Correct it") from error
    return text


def prompt_directory(path: Path) -> Path:
    """The directory of a saved prompt: the path itself, or the prompt in it if it is a run's directory.

    Raises:
        PromptError: If there is no such directory, or the run's is a link to elsewhere.
    """
    if not path.is_dir():
        raise PromptError(f"prompt directory {path} does not exist", "a saved prompt", "Check the path")
    own = path / RUN_PROMPT
    if (path / "checkpoints").is_dir() and not own.exists():
        raise PromptError(
            f"{path}, a run that has not ended",
            "a run with a prompt",
            f"Wait for its end if it is at work, else finish it: ptuning train --config {path}/config.yaml --resume",
        )
    if is_prompt_directory(path) or not is_prompt_directory(own):
        return path
    _require_own(own)
    return own


def read(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a prompt's directory, or that of its run: its tensors as in `write`, and fields of `SoftPrompt`.

    Raises:
        PromptError: If it is missing, truncated or of another kind.
    """
    directory = prompt_directory(directory)
    is_encoder = os.path.lexists(directory / ENCODER_FILE)
    tensors = _read_tensors(directory / ENCODER_FILE) if is_encoder else {EMBEDDINGS: _read_embeddings(directory)}
    known = _read_fields(directory)
    if known.pop("embeddings_sha256", None) not in (None, _digest(tensors)):
        file = directory / (ENCODER_FILE if is_encoder else WEIGHTS_FILE)
        raise _broken(file, f"its tensor is not the one {OWN_FILE} describes")
    known.pop("num_virtual_tokens")
    return tensors, known


def is_prompt_directory(path: Path) -> bool:
    """Whether a directory looks like a prompt saved by ptuning, or a soft prompt saved by PEFT."""
    if (path / OWN_FILE).is_file():
        return True
    try:
        return _read_json(path / PEFT_FILE, schema.Peft).get("peft_type") in _PEFT_TYPES
    except PromptError:
        return False


def _require_replaceable(path: Path) -> None:
    """Raises `PromptError` if the directory holds anything but a saved prompt."""
    names = {each.name for each in path.iterdir()} if path.is_dir() else {path.name} if path.exists() else set()
    others = names - set(FILES)
    if others:
        raise PromptError(
            f"{path} holds {min(others)}, which is not part of a saved prompt",
            "a new or empty directory, or one that holds a saved prompt",
            "Choose another directory",
        )


def plain(tensor: Tensor) -> Tensor:
    """An fp32 copy on the CPU, so that a saved prompt does not change with further training."""
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(plain(tensor).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not os.path.lexists(file):
        raise PromptError(
            f"{file.parent} has no {file.name}", "a saved prompt's directory", "Check the path, or save it again"
        )
    content = _read(file, MOST_TENSOR_BYTES)
    try:
        tensors: dict[str, Tensor] = load(content)
    except (SafetensorError, KeyError) as error:  # KeyError: numbers that torch lacks
        raise _broken(file, str(error)) from error
    for tensor in tensors.values():
        if tensor.dtype not in PRECISIONS:
            kind = f"{tensor.dtype}".removeprefix("torch.")
            raise PromptError(f"{file} holds {kind} numbers", "floating-point numbers", "Save it again")
    return tensors


def _read_embeddings(path: Path) -> Tensor:
    """The `[P, H]` tensor of a prompt directory."""
    file = path / WEIGHTS_FILE
    tensors = _read_tensors(file)
    if list(tensors) != [EMBEDDINGS] or tensors[EMBEDDINGS].ndim != 2 or not tensors[EMBEDDINGS].shape[1]:
        shapes = {name: list(tensor.shape) for name, tensor in sorted(tensors.items())}
        raise PromptError(
            f"{file} holds {str(shapes)[:200]}",
            f"one tensor {EMBEDDINGS} [P, H]",
            "Give a soft prompt, not another kind of adapter",
        )
    return tensors[EMBEDDINGS]


def _read(file: Path, most_bytes: int) -> bytes:
    """A file's content, as it was when it was saved."""
    _require_own(file)
    try:
        content = read_regular(file, most_bytes)
    except FileError as error:
        raise PromptError(error.received, error.expected, error.remedy) from error
    if has_changed(content):
        raise _broken(file, "it is not what was saved: its digest differs")
    return content


def _require_own(file: Path) -> None:
    """Raises `PromptError` for a link that leads out of the prompt's directory, but for those of the hub's cache."""
    own, target = file.parent.resolve(), Path(os.path.realpath(file))
    repository = own.parent.parent
    is_snapshot = own.parent.name == "snapshots"  # CACHE/REPOSITORY/snapshots/COMMIT
    blobs = (repository / _BLOBS, repository.parent / _BLOBS) if is_snapshot else ()
    if not any(target.is_relative_to(place) for place in (own, *blobs)):
        received = f"{file}, a link to {target} outside the prompt's directory"
        raise PromptError(received, "a file of its own", "Put the file itself there")


def _read_json(file: Path, kind: type) -> dict[str, Any]:
    """A JSON file whose types are those of a dataclass."""
    content = _read(file, MOST_JSON_BYTES)
    try:
        return read_json(content, kind)
    except ValueError as error:
        raise _broken(file, str(error)) from error


def _read_fields(path: Path) -> dict[str, Any]:
    """A saved prompt's JSON: fields of `SoftPrompt`, num_virtual_tokens and, if ptuning saved it, embeddings_sha256."""
    return _read_own(path) if os.path.lexists(path / OWN_FILE) else _read_peft(path)


def _read_peft(path: Path) -> dict[str, Any]:
    config = _read_json(path / PEFT_FILE, schema.Peft)
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
            "virtual tokens for the encoder alone, the only ones that PEFT itself uses to generate",
            "Train it with num_transformer_submodules=1",
        )
    return {
        "base_name": config.get("base_model_name_or_path"),
        "revision": config.get("revision"),
        "task_type": task_type,
        "num_virtual_tokens": config.get("num_virtual_tokens"),
    }


def _read_own(path: Path) -> dict[str, Any]:
    version = _read_json(path / OWN_FILE, schema.Version).get("format_version")
    if version not in (1, FORMAT_VERSION):
        told = f"{path / OWN_FILE} has format version {version}"
        raise PromptError(told, f"1 or {FORMAT_VERSION}", "Upgrade ptuning, or save it again")
    own = _read_json(path / OWN_FILE, schema.Own)
    if version == FORMAT_VERSION and not own.get("seal"):
        raise _broken(path / OWN_FILE, "it has no digest")
    try:
        fingerprint = own["base"]["fingerprint"]
        return {
            "task": Task(**own["task"]) if own["task"] else None,
            "base_name": own["base"]["name"],
            "fingerprint": _as_fingerprint(fingerprint) if fingerprint else None,
            "revision": own["base"]["revision"],
            "task_type": own["base"].get("task_type", "CAUSAL_LM"),
            "num_virtual_tokens": own.get("num_virtual_tokens"),
            **{key: own[key] for key in ("encoder", "init", "training", "results", "library_version")},
            "verdict": own.get("verdict", {}),
            "embeddings_sha256": own["embeddings_sha256"],
        }
    except (KeyError, TypeError, ConfigError) as error:
        raise _broken(path / OWN_FILE, f"{type(error).__name__}: {error}") from error


def _as_fingerprint(saved: Mapping[str, Any]) -> Fingerprint:
    return Fingerprint(**{**saved, "weights": tuple(saved["weights"])})


def _broken(file: Path, reason: str) -> PromptError:
    return PromptError(f"{file} is truncated or broken ({reason})", "a complete saved prompt", "Save or copy it again")
