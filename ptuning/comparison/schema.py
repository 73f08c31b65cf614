"""The types of a comparison's JSON files. Keys that are not named here may hold anything.

Knows nothing of what the values mean.
"""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class PartFile:
    """`result.json`: one way, fitted once."""

    way: str
    seed: int
    num_train: int
    predicted: list[int]
    correct: list[int]
    validation_accuracy: float
    chosen: dict[str, str]
    num_trained: int
    seconds: float
    memory_bytes: int | None
    bytes_to_ship: int
    text_loss: list[float] | None
    verdict: dict[str, str] | None
    extra_tokens: float
    milliseconds: float
    rows_per_second: float


@dataclass(frozen=True)
class MadeWith:
    """`made_with.json`: what all parts follow from."""

    settings: dict[str, Any]
    rows: dict[str, str]
    weights: str


@dataclass(frozen=True)
class OwnFile:
    """`way.json`: what a way is read back from."""

    kind: str
    base: str
    dtype: str
    task: dict[str, Any]
    fingerprint: dict[str, Any]
    shown: str | None = None
    pooling: Literal["last token", "mean"] | None = None
