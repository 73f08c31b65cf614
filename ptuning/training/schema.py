"""The types of a run's JSON files. Keys that are not named here may hold anything.

Knows nothing of what the values mean.
"""

from dataclasses import dataclass
from typing import Any

from ptuning.prompts import Result


@dataclass(frozen=True)
class _Compared:
    warning: str | None = None


@dataclass(frozen=True)
class Metrics:
    """`metrics.json`."""

    split: str | None
    results: dict[str, Result]
    training: dict[str, Any]
    compared: _Compared | None = None


@dataclass(frozen=True)
class LogLine:
    """A line of `metrics.jsonl`."""

    step: int
    loss: float | None = None
    learning_rate: float | None = None
    eval_loss: float | None = None
    eval_accuracy: float | None = None
    baseline_loss: float | None = None
    baseline_accuracy: float | None = None
