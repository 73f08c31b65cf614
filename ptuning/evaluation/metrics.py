"""What rows' scores come to: counts and sums that processes can add up, and the metrics computed from them.

Knows nothing of models, training or files.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from ptuning.data import Example, num_cut
from ptuning.evaluation.scores import RowScores
from ptuning.evaluation.table import Table

_MOST_CALLED = 12  # labels whose confusion is printed
_Z = 1.959963984540054  # the normal distribution's 97.5 % point

CLASS_COLUMNS = {
    "label": "the label",
    "precision": "share of the rows called so that are so; null where no row is called so",
    "recall": "share of the rows that are so that are called so; null where no row is so",
    "f1": "harmonic mean of precision and recall: twice the rows called so rightly, over those called so and those so",
    "num_rows": "rows that are so",
}


@dataclass(frozen=True)
class Metrics:
    """Counts over some rows, and the metrics computed from them."""

    num_rows: int
    """Rows evaluated."""
    num_correct: int
    """With a verbalizer: rows whose label is the most likely. Without: rows whose answer greedy generation writes."""
    num_label_tokens: int
    """Tokens in all answers."""
    loss_sum: float
    """Cross-entropy summed over the answers' tokens, in nats, over the whole vocabulary."""
    num_cut: int = 0
    """Rows whose text was cut to fit."""
    label_loss_sum: float = 0.0
    """Cross-entropy of the rows' labels among the labels alone, summed over rows, in nats; 0 without labels."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Rows by their own label and, within, by the label that is the most likely; empty without labels."""

    @classmethod
    def of(cls, scores: RowScores, examples: Sequence[Example], num_labels: int) -> Self:
        """The metrics of some rows.

        Args:
            scores: The rows' scores.
            examples: The rows.
            num_labels: How many labels the task has; 0 where answers are written.
        """
        label_loss_sum, confusion = 0.0, [[0] * num_labels for _ in range(num_labels)]
        if num_labels and examples:
            assert scores.labels_NC is not None
            own = [example.label or 0 for example in examples]
            label_log_probs_NC = scores.labels_NC.double().log_softmax(dim=1)
            label_loss_sum = -float(label_log_probs_NC.gather(1, torch.tensor(own)[:, None]).sum())
            for is_so, called in zip(own, scores.labels_NC.argmax(dim=1).tolist(), strict=True):
                confusion[is_so][called] += 1
        return cls(
            num_rows=len(examples),
            num_correct=int(scores.is_correct_N.sum()),
            num_label_tokens=sum(len(example.answer_ids) for example in examples),
            loss_sum=-float(scores.log_probs_N.double().sum()),
            num_cut=num_cut(examples),
            label_loss_sum=label_loss_sum,
            confusion=tuple(map(tuple, confusion)),
        )

    def summed(self, sum_: Callable[[float], float]) -> Self:
        """The metrics of all processes' rows; `sum_` adds up a number over them."""
        return type(self)(
            num_rows=int(sum_(self.num_rows)),
            num_correct=int(sum_(self.num_correct)),
            num_label_tokens=int(sum_(self.num_label_tokens)),
            loss_sum=sum_(self.loss_sum),
            num_cut=int(sum_(self.num_cut)),
            label_loss_sum=sum_(self.label_loss_sum),
            confusion=tuple(tuple(int(sum_(count)) for count in row) for row in self.confusion),
        )

    @property
    def accuracy(self) -> float:
        """The fraction of rows that are correct; NaN without rows."""
        return self.num_correct / self.num_rows if self.num_rows else math.nan

    @property
    def loss(self) -> float:
        """Mean cross-entropy per answer token over the whole vocabulary, in nats; NaN without answer tokens."""
        return self.loss_sum / self.num_label_tokens if self.num_label_tokens else math.nan

    @property
    def label_log_loss(self) -> float:
        """Mean cross-entropy of a row's label among the labels alone, in nats; NaN without rows."""
        return self.label_loss_sum / self.num_rows if self.num_rows else math.nan

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the labels that some row has or is called; NaN if there is none."""
        found = [record["f1"] for record in self._by_class([""] * len(self.confusion)) if record["f1"] is not None]
        return sum(found) / len(found) if found else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy (Wilson 1927)."""
        n, p = self.num_rows, self.accuracy
        if not n:
            return 0.0, 1.0
        centre, half = p + _Z**2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        scale = 1 + _Z**2 / n
        return (centre - half) / scale, (centre + half) / scale

    def per_class(self, labels: Sequence[str]) -> Table:
        """Precision, recall and F1 of each label.

        Args:
            labels: The labels' names, in the verbalizer's order.
        """
        return Table(CLASS_COLUMNS, self._by_class(labels))

    def _by_class(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        records = []
        for c, label in enumerate(labels):
            right, num_so = self.confusion[c][c], sum(self.confusion[c])
            num_called = sum(row[c] for row in self.confusion)
            records.append(
                {
                    "label": label,
                    "precision": right / num_called if num_called else None,
                    "recall": right / num_so if num_so else None,
                    "f1": 2 * right / (num_called + num_so) if num_called + num_so else None,
                    "num_rows": num_so,
                }
            )
        return records

    def __str__(self) -> str:
        """One line for display."""
        low, high = self.interval
        macro = f", macro-F1 {self.macro_f1:.3f}" if len(self.confusion) > 2 else ""
        rows = f"on {self.num_rows:,} rows"
        return f"accuracy {self.accuracy:.3f} ({low:.3f} to {high:.3f}){macro} {rows}, loss {self.loss:.3f}"

    def as_dict(self) -> dict[str, Any]:
        """The values that are written to files and printed as JSON; one that is undefined is None."""
        values = {
            "num_rows": self.num_rows,
            "accuracy": _defined(self.accuracy),
            "interval": list(self.interval),
            "loss": _defined(self.loss),
            "num_cut": self.num_cut,
        }
        if not self.confusion:
            return values
        return {**values, "macro_f1": _defined(self.macro_f1), "label_log_loss": _defined(self.label_log_loss)}

    def details(self, labels: Sequence[str]) -> dict[str, Any]:
        """The metrics of each label, and the confusion matrix, as plain data."""
        rows = [dict(zip(labels, counts, strict=True)) for counts in self.confusion]
        return {
            "per_class": [dict(record) for record in self.per_class(labels)],
            "confusion": dict(zip(labels, rows, strict=True)),
        }


def class_table(metrics: Metrics, labels: Sequence[str]) -> list[str]:
    """The lines of a Markdown table of the labels' metrics; with few labels also what the rows of each are called.

    Args:
        metrics: The metrics.
        labels: The labels' names, in the verbalizer's order.
    """
    called = list(labels) if len(labels) <= _MOST_CALLED else []
    head = ["label", "precision", "recall", "F1", "rows", *(f"called {label}" for label in called)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for record, counts in zip(metrics.per_class(labels), metrics.confusion, strict=True):
        scores = [record[key] for key in ("precision", "recall", "f1")]
        cells = [record["label"], *("" if score is None else f"{score:.3f}" for score in scores)]
        cells += [f"{record['num_rows']:,}", *(f"{count:,}" for count in counts[: len(called)])]
        lines.append(f"| {' | '.join(cells)} |")
    means = f"macro-F1 {metrics.macro_f1:.3f}, log-loss over the labels {metrics.label_log_loss:.3f} nats"
    return [*lines, "", means]


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
