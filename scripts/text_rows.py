"""Labelled texts: telling repeats apart, shuffling alike everywhere, and writing CSV files.

Knows nothing of where texts come from, or of models.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import TypeVar

T = TypeVar("T")
Pair = tuple[str, str]
"""A text and its label."""


def text_key(text: str) -> str:
    """What texts have in common that differ in nothing but case, spaces and punctuation."""
    return "".join(filter(str.isalnum, text.casefold())) or text


def shuffled(items: Iterable[T], random: Random) -> list[T]:
    """The items in random order; for the same seed it is the same in every version of Python."""
    # Sorting by Random.random is promised to be so; Random.shuffle is not.
    return sorted(items, key=lambda _: random.random())


def write_rows(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Writes texts and their labels as a CSV file of the columns text and label."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "label"))
        writer.writerows(rows)
