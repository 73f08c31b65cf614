"""What a comparison measures: labels that are right, or written texts that are like the expected ones.

Knows nothing of any single way, or of what the scores add up to.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ptuning.comparison.measures import ACCURACY, CHARACTER_F1, EXACT_MATCH, LOSS, ROUGE_L
from ptuning.comparison.protocol import Fitted, SkippedError, Way, Writer, Writing, labels_of
from ptuning.data import Row, Task
from ptuning.evaluation import character_f1, exact_match, has_rouge, rouge_l
from ptuning.model import Backbone

_LINE_BREAKS = {"\n": "a line break", "\n\n": "a blank line"}


class Goal(ABC):
    """What a task asks for."""

    measure: ClassVar[str]
    """The name of the main score, from 0 to 1: what ways are compared and recommended by."""
    writing: Writing | None = None
    """When a written answer ends; None: answers are labels."""

    @abstractmethod
    def require(self, way: Way) -> None:
        """Raises `SkippedError` for a way that cannot give such answers."""

    @abstractmethod
    def answers(self, fitted: Fitted, rows: Sequence[Row]) -> list[str]:
        """What a fitted way answers."""

    @abstractmethod
    def scores(self, fitted: Fitted, rows: Sequence[Row], answers: Sequence[str]) -> dict[str, list[float]]:
        """Name -> the score of each row, the main score first.

        Args:
            fitted: The way.
            rows: The rows, with the expected answers.
            answers: What it answered.
        """

    @property
    def about(self) -> dict[str, str]:
        """What to tell of it, in words."""
        return {}


@dataclass(frozen=True)
class LabelGoal(Goal):
    """A label for each row."""

    task: Task
    """The task."""
    measure = ACCURACY

    def require(self, way: Way) -> None:
        """As in `Goal`: every way gives labels."""

    def answers(self, fitted: Fitted, rows: Sequence[Row]) -> list[str]:
        """As in `Goal`."""
        labels = tuple(self.task.verbalizer or ())
        return [labels[i] for i in fitted.label_scores(rows).argmax(dim=1).tolist()]

    def scores(self, fitted: Fitted, rows: Sequence[Row], answers: Sequence[str]) -> dict[str, list[float]]:
        """As in `Goal`."""
        labels = tuple(self.task.verbalizer or ())
        expected = [labels[i] for i in labels_of(self.task, rows)]
        return {ACCURACY: [float(own == each) for own, each in zip(expected, answers, strict=True)]}


@dataclass(frozen=True)
class TextGoal(Goal):
    """A text for each row."""

    task: Task
    """The task."""
    writing: Writing
    """When an answer ends."""
    measure = CHARACTER_F1

    @classmethod
    def of(cls, backbone: Backbone, task: Task, rows: Sequence[Row]) -> "TextGoal":
        """The goal of a task whose expected answers are like those of some rows.

        An answer may have as many tokens as the longest of these. A line break ends it, where none of them holds one,
        or else a blank line: a base that was not trained goes on behind its answer.
        """
        longest = max(len(each.answer_ids) for each in backbone.coder(task).encode(rows))
        expected = [task.answer_text(row.values) for row in rows]
        stops = [mark for mark in _LINE_BREAKS if not any(mark in each for each in expected)]
        return cls(task, Writing(longest, tuple(stops[:1])))

    def require(self, way: Way) -> None:
        """As in `Goal`."""
        if not way.writes:
            raise SkippedError("texts to write", "labels, in data.verbalizer", "Leave this way out")

    def answers(self, fitted: Fitted, rows: Sequence[Row]) -> list[str]:
        """As in `Goal`."""
        assert isinstance(fitted, Writer)
        return fitted.answers(rows, self.writing)

    def scores(self, fitted: Fitted, rows: Sequence[Row], answers: Sequence[str]) -> dict[str, list[float]]:
        """As in `Goal`."""
        assert isinstance(fitted, Writer)
        expected = [self.task.answer_text(row.values) for row in rows]
        pairs = list(zip(answers, expected, strict=True))
        found = {
            CHARACTER_F1: [character_f1(*pair) for pair in pairs],
            EXACT_MATCH: [float(exact_match(*pair)) for pair in pairs],
        }
        rouge = {ROUGE_L: rouge_l(answers, expected)} if has_rouge() else {}
        return {**found, **rouge, LOSS: fitted.answer_losses(rows).tolist()}

    @property
    def about(self) -> dict[str, str]:
        """As in `Goal`."""
        marks = [_LINE_BREAKS[each] for each in self.writing.stop_strings]
        ends = ["an end-of-text token", *marks, f"{self.writing.max_new_tokens} tokens"]
        return {"an answer ends at": f"{', '.join(ends[:-1])} or {ends[-1]}"}
