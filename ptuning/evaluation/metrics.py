"""What rows' scores add up to: accuracy with its interval, losses, macro-F1, scores per class, the confusion matrix.

Knows nothing of models: `scoring` reads the rows.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from torch import Tensor

from ptuning.data import Example, num_cut

NORMAL_QUANTILE = 1.959963984540054  # the normal distribution's 97.5 % point
_BALANCED = 1.5  # classes count as balanced while the largest has at most so many times the rows of the smallest


@dataclass(frozen=True)
class RowScores:
    """The outcome for each of N rows, as tensors on the CPU."""

    log_probs_N: Tensor
    """Log-probability of the row's own answer, in nats."""
    is_correct_N: Tensor
    """With labels: whether the row's label is the most likely. Without: whether greedy generation writes its answer."""
    labels_NC: Tensor | None
    """Log-probability of each label's text, in nats; None without labels."""


@dataclass(frozen=True)
class ClassScores:
    """How well one class is told from the others; None where a score is undefined."""

    precision: float | None
    """The share of its predictions that are right; None if it is never predicted."""
    recall: float | None
    """The share of its rows that are found; None if it has no rows."""
    f1: float | None
    """The harmonic mean of the two, 2 TP / (2 TP + FP + FN); None if it has no rows and is never predicted."""
    num_rows: int
    """Rows whose true label it is."""


@dataclass(frozen=True)
class Metrics:
    """Sums over some rows, and the metrics computed from them; the `sums` of several sets of rows can be added."""

    num_rows: int
    """Rows evaluated."""
    num_correct: int
    """With a verbalizer: rows whose label is the most likely. Without: rows whose answer greedy generation writes."""
    num_label_tokens: int
    """Tokens in all answers."""
    loss_sum: float
    """Cross-entropy summed over the answers' tokens, in nats."""
    num_cut: int = 0
    """Rows whose text was cut to fit."""
    label_loss_sum: float = 0.0
    """Cross-entropy over the labels summed over the rows, in nats; 0 without labels."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """For each true label, the rows for which each label is the most likely, `C` times `C`; empty without labels."""

    @classmethod
    def of(cls, scores: RowScores, examples: Sequence[Example]) -> Self:
        """The metrics of rows that have been scored.

        Args:
            scores: The rows' scores.
            examples: The same N rows.
        """
        label_loss_sum, confusion = 0.0, list[list[int]]()
        if scores.labels_NC is not None:
            num_labels = scores.labels_NC.shape[1]
            confusion = [[0] * num_labels for _ in range(num_labels)]
            losses_NC, predicted_N = -scores.labels_NC.double().log_softmax(dim=1), scores.labels_NC.argmax(dim=1)
            for example, losses, predicted in zip(examples, losses_NC.tolist(), predicted_N.tolist(), strict=True):
                assert example.label is not None
                label_loss_sum += losses[example.label]
                confusion[example.label][predicted] += 1
        return cls(
            num_rows=len(examples),
            num_correct=int(scores.is_correct_N.sum()),
            num_label_tokens=sum(len(example.answer_ids) for example in examples),
            loss_sum=-float(scores.log_probs_N.double().sum()),
            num_cut=num_cut(examples),
            label_loss_sum=label_loss_sum,
            confusion=tuple(map(tuple, confusion)),
        )

    @property
    def sums(self) -> list[float]:
        """All sums as one flat list, which can be added to those of other rows; `of_sums` reads it."""
        scalars = (self.num_rows, self.num_correct, self.num_label_tokens, self.num_cut)
        return [*scalars, self.loss_sum, self.label_loss_sum, *(count for row in self.confusion for count in row)]

    @classmethod
    def of_sums(cls, sums: Sequence[float]) -> Self:
        """The metrics of sums in the order of `sums`."""
        num_rows, num_correct, num_label_tokens, cut, loss_sum, label_loss_sum, *counts = sums
        num_labels = math.isqrt(len(counts))
        rows = (counts[i * num_labels : (i + 1) * num_labels] for i in range(num_labels))
        return cls(
            int(num_rows),
            int(num_correct),
            int(num_label_tokens),
            loss_sum,
            int(cut),
            label_loss_sum,
            tuple(tuple(map(int, row)) for row in rows),
        )

    @property
    def accuracy(self) -> float:
        """The fraction of rows that are correct; NaN without rows."""
        return self.num_correct / self.num_rows if self.num_rows else math.nan

    @property
    def standard_error(self) -> float:
        """The accuracy's standard error, from the width of its interval: above 0 also where all rows are correct."""
        low, high = self.interval
        return (high - low) / (2 * NORMAL_QUANTILE)

    @property
    def loss(self) -> float:
        """Mean cross-entropy per answer token, over the whole vocabulary, in nats; NaN without answer tokens."""
        return self.loss_sum / self.num_label_tokens if self.num_label_tokens else math.nan

    @property
    def label_log_loss(self) -> float:
        """Log-loss over the labels: mean cross-entropy per row in nats; NaN without labels or rows.

        The probabilities are those of the labels among each other: a softmax of the log-probabilities of their texts.
        """
        return self.label_loss_sum / self.num_rows if self.num_rows and self.confusion else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy (Wilson 1927)."""
        n, p = self.num_rows, self.accuracy
        if not n:
            return 0.0, 1.0
        centre, half = (
            p + NORMAL_QUANTILE**2 / (2 * n),
            NORMAL_QUANTILE * math.sqrt(p * (1 - p) / n + NORMAL_QUANTILE**2 / (4 * n**2)),
        )
        scale = 1 + NORMAL_QUANTILE**2 / n
        return (centre - half) / scale, (centre + half) / scale

    @property
    def per_class(self) -> list[ClassScores]:
        """Precision, recall and F1 of each label, in the labels' order; empty without labels."""
        found = [sum(column) for column in zip(*self.confusion, strict=True)]
        classes = []
        for i, row in enumerate(self.confusion):
            right, num_rows, num_predicted = row[i], sum(row), found[i]
            f1 = _share(2 * right, num_rows + num_predicted)
            classes.append(ClassScores(_share(right, num_predicted), _share(right, num_rows), f1, num_rows))
        return classes

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the labels that occur as a true or a predicted label; NaN without labels or rows."""
        known = [each.f1 for each in self.per_class if each.f1 is not None]
        return sum(known) / len(known) if known else math.nan

    @property
    def commonest_share(self) -> float:
        """The accuracy of always naming the commonest label; NaN without labels or rows."""
        return max(map(sum, self.confusion)) / self.num_rows if self.num_rows and self.confusion else math.nan

    @property
    def is_balanced(self) -> bool:
        """Whether no class has more than 1.5 times the rows of another; True without labels."""
        sizes = [sum(row) for row in self.confusion]
        return max(sizes, default=0) <= _BALANCED * min(sizes, default=0)

    def __str__(self) -> str:
        """One line for display; with the macro-F1 where the classes are more than two or not balanced."""
        low, high = self.interval
        line = f"accuracy {self.accuracy:.3f} ({low:.3f} to {high:.3f}) on {self.num_rows:,} rows, loss {self.loss:.3f}"
        says_more = len(self.confusion) > 2 or not self.is_balanced
        return f"{line}, macro-F1 {self.macro_f1:.3f}" if says_more else line

    def as_dict(self, labels: Sequence[str] = ()) -> dict[str, Any]:
        """The values that are written to files and printed as JSON; None where one is undefined.

        Args:
            labels: The labels' names; given them, the scores of each class and the confusion matrix are included.
        """
        values: dict[str, Any] = {
            "num_rows": self.num_rows,
            "accuracy": finite(self.accuracy),
            "interval": list(self.interval),
            "loss": finite(self.loss),
            "num_cut": self.num_cut,
        }
        if self.confusion:
            values |= {"macro_f1": finite(self.macro_f1), "label_log_loss": finite(self.label_log_loss)}
        if self.confusion and labels:
            values["per_class"] = {label: asdict(scores) for label, scores in zip(labels, self.per_class, strict=True)}
            values["confusion"] = {"labels": list(labels), "counts": [list(row) for row in self.confusion]}
        return values


def finite(value: float) -> float | None:
    """The number, or None for one that JSON cannot hold."""
    return value if math.isfinite(value) else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
