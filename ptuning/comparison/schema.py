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
    chosen: dict[str, str]
    num_trained: int
    seconds: float
    memory_bytes: int | None
    bytes_to_ship: int
    extra_tokens: float
    milliseconds: float
    rows_per_second: float
    index: dict[str, float] | None = None
    text_loss: list[float] | None = None
    verdict: dict[str, str] | None = None


@dataclass(frozen=True)
class MadeWith:
    """`made_with.json`: what all parts follow from."""

    settings: dict[str, Any]
    rows: dict[str, str]
    weights: str


@dataclass(frozen=True)
class FingerprintPart:
    """The base's fingerprint in `way.json`."""

    architecture: dict[str, Any]
    weights: list[float]
    dtype: str


@dataclass(frozen=True)
class WritingPart:
    """When a written answer ends, in `way.json`."""

    max_new_tokens: int
    stop_strings: list[str]


@dataclass(frozen=True)
class OwnFile:
    """`way.json`: what a way is read back from."""

    kind: str
    base: str
    dtype: str
    task: dict[str, Any]
    fingerprint: FingerprintPart
    writing: WritingPart | None = None
    shown: str | None = None
    pooling: Literal["last token", "mean"] | None = None
    words: dict[str, int] | None = None
    by: Literal["shared words", "hidden states"] | None = None
    number: int | None = None
    is_balanced: bool = False


@dataclass(frozen=True)
class TextsFile:
    """`rows.json`: rows of text."""

    rows: list[dict[str, str]]
