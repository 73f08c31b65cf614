"""The types of a saved prompt's JSON files. Keys that are not named here may hold anything.

Knows nothing of what the values mean.
"""

from dataclasses import dataclass, field
from typing import Any

from ptuning.data import Task
from ptuning.model import Fingerprint


@dataclass(frozen=True)
class Result:
    """What was measured on one side."""

    num_rows: int
    interval: tuple[float, float]
    accuracy: float | None = None
    loss: float | None = None
    macro_f1: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What an inspection said."""

    word: str = ""
    sentence: str = ""
    effect: str | None = None
    judged_on: str | None = None


@dataclass(frozen=True)
class _Base:
    name: str | None
    revision: str | None
    fingerprint: Fingerprint | None
    task_type: str = "CAUSAL_LM"


@dataclass(frozen=True)
class _Encoder:
    name: str = ""
    hidden_size: int | None = None


@dataclass(frozen=True)
class _Init:
    kind: str | None = None
    token_ids: list[int | None] | None = None


@dataclass(frozen=True)
class _Training:
    data: dict[str, str | None] = field(default_factory=dict)
    classes: list[Any] = field(default_factory=list)
    rows: int = 0
    validation_rows: int = 0
    steps: int = 0
    best_step: int = 0
    learning_rate: float = 0.0
    seed: int = 0
    dtype: str | None = None


@dataclass(frozen=True)
class Own:
    """`ptuning.json`."""

    format_version: int
    num_virtual_tokens: int | None
    task: Task | None
    base: _Base
    encoder: _Encoder
    init: _Init
    training: _Training
    results: dict[str, Result]
    library_version: str
    embeddings_sha256: str
    verdict: Verdict = field(default_factory=Verdict)


@dataclass(frozen=True)
class Version:
    """What every version of `ptuning.json` tells first."""

    format_version: int | None = None


@dataclass(frozen=True)
class Peft:
    """`adapter_config.json`, as far as it is read."""

    peft_type: str | None = None
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    num_virtual_tokens: int | None = None
    num_transformer_submodules: int | None = None
