"""Lays out the scores of each class and the confusion matrix for a terminal.

Knows nothing of how they are computed.
"""

from collections.abc import Sequence

from ptuning.evaluation.metrics import Metrics
from ptuning.evaluation.table import aligned

_MOST_CONFUSED = 12  # labels: with more, the matrix does not fit into a terminal


def class_report(metrics: Metrics, labels: Sequence[str]) -> list[str]:
    """The lines of a table of the classes and, up to 12 labels, of the confusion matrix; none without labels.

    Args:
        metrics: What was measured.
        labels: The labels' names, in the verbalizer's order.
    """
    if not metrics.confusion:
        return []
    overall = (
        f"macro-F1 {metrics.macro_f1:.3f}, log-loss over the labels {metrics.label_log_loss:.3f} nats; "
        f"always naming the commonest label: accuracy {metrics.commonest_share:.3f}"
    )
    cells = [["label", "precision", "recall", "F1", "rows"]]
    for label, scores in zip(labels, metrics.per_class, strict=True):
        shares = (scores.precision, scores.recall, scores.f1)
        cells.append([label, *("-" if each is None else f"{each:.3f}" for each in shares), f"{scores.num_rows:,}"])
    lines = [overall, *aligned(cells)]
    return lines if len(labels) > _MOST_CONFUSED else [*lines, *_matrix(metrics, labels)]


def only_label(metrics: Metrics, labels: Sequence[str]) -> str | None:
    """The label that every row was given, where that is one and the rows have several; else None."""
    given = [sum(column) for column in zip(*metrics.confusion, strict=True)]
    own = [sum(row) for row in metrics.confusion]
    if sum(map(bool, given)) != 1 or sum(map(bool, own)) < 2:
        return None
    return next(label for label, count in zip(labels, given, strict=True) if count)


def _matrix(metrics: Metrics, labels: Sequence[str]) -> list[str]:
    """The confusion matrix; its columns are headed by the labels' numbers, since the labels may be long."""
    numbers = [str(number) for number in range(1, len(labels) + 1)]
    cells = [["rows by true label (down) and predicted label (across)", *numbers]]
    for number, label, row in zip(numbers, labels, metrics.confusion, strict=True):
        cells.append([f"{number} {label}", *(f"{count:,}" for count in row)])
    return aligned(cells)
