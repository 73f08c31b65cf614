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
    answers: list[str]
    scores: dict[str, list[float]]
    validation_score: float
    chosen: dict[str, str]
    num_trained: int
    seconds: float
    memory_bytes: int | None
    bytes_to_ship: int
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
class WritingFile:
    """Inside `way.json`: when a written answer ends."""

    max_new_tokens: int
    stop_strings: list[str]


@dataclass(frozen=True)
class OwnFile:
    """`way.json`: what a way is read back from."""

    kind: str
    base: str
    dtype: str
    task: dict[str, Any]
    fingerprint: dict[str, Any]
    writing: WritingFile | None = None
    shown: str | None = None
    pooling: Literal["last token", "mean"] | None = None
