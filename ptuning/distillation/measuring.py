"""Measures the sides of a distillation on the same rows: task score, agreement with the teacher, divergence, costs.

Knows nothing of training or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptuning.comparison import Writing, num_tokens, speed_of
from ptuning.data import Row, Task
from ptuning.distillation.answer_logits import answer_logits
from ptuning.distillation.answers import answers_of
from ptuning.distillation.sides import Side
from ptuning.evaluation import Scores, character_f1, exact_match
from ptuning.forward import Prefix, ReadOptions
from ptuning.model import Backbone, CausalBackbone
from ptuning.training import SoftTargets

_REPEATS = 3  # of a measurement of time


@dataclass(frozen=True)
class Measured:
    """What a side comes to on N rows."""

    side: Side
    """The side."""
    answers: Sequence[str]
    """Its answers."""
    score_N: Tensor
    """Each row's task score, from 0 to 1: whether the label is right, or the character F1 of what is written."""
    agrees_N: Tensor
    """1 where it answers as the teacher."""
    divergence_N: Tensor
    """Divergence from the teacher's distributions, in nats, a mean over the answer's tokens."""
    num_tokens: float
    """Tokens of a request, virtual ones included, on average."""
    milliseconds: float
    """Median time of a request by itself, nothing kept from earlier ones."""

    @property
    def scores(self) -> Scores:
        """The task scores, for resampling."""
        column_N1 = self.score_N[:, None]
        return Scores(column_N1, self.divergence_N[:, None], torch.ones_like(column_N1), None)


@dataclass(frozen=True)
class Judge:
    """Measures sides on the same rows."""

    backbone: Backbone
    """The frozen model."""
    task: Task
    """The task."""
    rows: Sequence[Row]
    """The rows with the answers that are expected."""
    taught: Sequence[Row]
    """The same rows with the teacher's own answers."""
    targets: SoftTargets
    """What the teacher says at its answers."""
    writing: Writing
    """When a written answer ends."""
    options: ReadOptions = ReadOptions()
    """How rows are read."""

    def measure(self, side: Side) -> Measured:
        """Reads all rows with a side."""
        answers, expected, taught = self._answers(side, self.rows), self._told(self.rows), self._told(self.taught)
        return Measured(
            side=side,
            answers=answers,
            score_N=torch.tensor([self._score(*pair) for pair in zip(answers, expected, strict=True)]),
            agrees_N=torch.tensor([float(exact_match(*pair)) for pair in zip(answers, taught, strict=True)]),
            divergence_N=self._divergences(side),
            num_tokens=num_tokens(self.backbone, side.task, self.rows),
            milliseconds=speed_of(lambda rows: self._answers(side, rows), self.rows, _REPEATS).milliseconds,
        )

    def _score(self, answer: str, expected: str) -> float:
        """How right an answer is."""
        return float(answer == expected) if self.task.is_classification else character_f1(answer, expected)

    def _told(self, rows: Sequence[Row]) -> list[str]:
        """The rows' answers."""
        (column,) = self.task.answer_columns
        return [row.values[column] for row in rows]

    def _answers(self, side: Side, rows: Sequence[Row]) -> list[str]:
        return answers_of(self.backbone, side.task, self._prompt(side), rows, self.writing, self.options)

    def _divergences(self, side: Side) -> Tensor:
        examples, found_N = self.backbone.coder(side.task).encode(self.taught), torch.zeros(len(self.rows))
        for places, logits_NV in answer_logits(self.backbone, self._prompt(side), examples, self.options):
            own = self.targets.of_rows(places)
            for place, each in zip(places, own.divergences(logits_NV).cpu().split(own.lengths), strict=True):
                found_N[place] = each.mean()
        return found_N

    def _prompt(self, side: Side) -> Tensor:
        if side.prompt is None:
            return torch.zeros(0, self.backbone.width)
        return side.prompt.embeddings_PH.to(self.backbone.device)


def cache_bytes_per_token(backbone: Backbone) -> int | None:
    """What a token's keys and values take in memory; None for a model that does not keep them as others do."""
    if not (isinstance(backbone, CausalBackbone) and backbone.can_keep_prefix):
        return None
    with torch.no_grad():
        prefix = Prefix.of(backbone, torch.zeros(0, backbone.width), [0])
    return sum(each.nbytes for layer in prefix.layers for each in layer)
