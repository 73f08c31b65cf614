"""Rows as token ids, and the ids that rows begin with.

Knows nothing of tensors, models or files. Negative ids are virtual tokens.
"""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A row as token ids; negative ids are virtual tokens."""

    ids: list[int]
    """Everything before the answer."""
    answer_ids: list[int]
    """The answer's tokens; empty where the row has no answer."""
    label: int | None = None
    """The index of the row's label in the verbalizer, where there is one."""
    was_cut: bool = False
    """Whether the text field was shortened to fit."""

    def __len__(self) -> int:
        return len(self.ids) + len(self.answer_ids)

    @property
    def num_text(self) -> int:
        """The number of real tokens."""
        return sum(i >= 0 for i in self.ids) + len(self.answer_ids)


def prefix_ids(examples: Sequence[Example]) -> tuple[int, ...]:
    """The ids that all rows begin with, before every position whose logits are needed; empty for a single row."""
    if len(examples) < 2:
        return ()
    return tuple(common_beginning([each.ids for each in examples]))[: min(len(each.ids) - 1 for each in examples)]


def common_beginning(rows: Sequence[list[int]]) -> list[int]:
    """The ids that all rows begin with."""
    first, last = min(rows), max(rows)  # in alphabetical order: rows between these two share what the two share
    return first[: next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))]


def num_cut(examples: Iterable[Example]) -> int:
    """The number of rows that lost the end of their text."""
    return sum(example.was_cut for example in examples)


def warn_of_cut(what: str, examples: Sequence[Example]) -> None:
    """Logs how many rows lost the end of their text, where any did."""
    count = num_cut(examples)
    if count:
        _log.warning(
            f"{what}: {count:,} of {len(examples):,} rows lost the end of their text, being too long for "
            "the model's positions or max_length"
        )


def with_answer(example: Example, answer_ids: list[int]) -> Example:
    """The example with another answer."""
    return dataclasses.replace(example, answer_ids=answer_ids)
