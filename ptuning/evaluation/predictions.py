"""What was predicted for each row, as plain records.

Knows nothing of models, training or files.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from ptuning.data import Row, Task, Template
from ptuning.evaluation.scores import RowScores


def prediction_records(scores: RowScores, rows: Sequence[Row], task: Task) -> Iterator[dict[str, Any]]:
    """A record for each row: where it stands, its answer, what was predicted, and whether that is right.

    With labels also the probability of each among the labels; without, `log_prob` alone tells how likely the answer is.

    Args:
        scores: The rows' scores.
        rows: The rows, in the same order.
        task: What the rows were asked.
    """
    labels = list(task.verbalizer or ())
    probabilities_NC = scores.labels_NC.double().softmax(dim=1) if scores.labels_NC is not None else None
    for i, row in enumerate(rows):
        record: dict[str, Any] = {"row": row.where, "answer": _answer(row, task)}
        if probabilities_NC is not None:
            record["prediction"] = labels[int(probabilities_NC[i].argmax())]
            record["probabilities"] = dict(zip(labels, probabilities_NC[i].tolist(), strict=True))
        yield {**record, "is_correct": bool(scores.is_correct_N[i]), "log_prob": float(scores.log_probs_N[i])}


def _answer(row: Row, task: Task) -> str:
    return "".join(map(str, Template.parse(task.answer).fill(row.values)))
