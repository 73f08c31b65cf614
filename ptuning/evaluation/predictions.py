"""One record for each row: its answer, what was predicted, and how likely both are.

Knows nothing of models or of how rows are scored.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptuning.data import Row, Task
from ptuning.evaluation.metrics import RowScores, finite
from ptuning.files import whole_file


def prediction_records(
    task: Task, rows: Sequence[Row], scores: RowScores, written: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The records of rows, in their order, as plain data.

    Args:
        task: What the rows are asked.
        rows: N rows with answers.
        scores: Their scores.
        written: Without labels, the answers that were generated; None if none were.

    Yields:
        `row` (its file and line), `label` or `answer` (the expected one), `prediction` (None for a written answer that
        was not generated), `probabilities` (label -> probability among the labels; only with labels), `correct` (as
        the accuracy counts it) and `log_prob` (of the expected answer, in nats).
    """
    labels, kind = tuple(task.verbalizer or ()), "label" if task.is_classification else "answer"
    predicted: Sequence[str | None] = written or [None] * len(rows)
    shares: Sequence[Sequence[float]] = [()] * len(rows)
    if scores.labels_NC is not None:
        predicted = [labels[i] for i in scores.labels_NC.argmax(dim=1).tolist()]
        shares = scores.labels_NC.double().softmax(dim=1).tolist()
    outcomes = zip(scores.is_correct_N.tolist(), scores.log_probs_N.tolist(), strict=True)
    for row, prediction, own, (is_correct, log_prob) in zip(rows, predicted, shares, outcomes, strict=True):
        record: dict[str, Any] = {"row": row.where, kind: task.answer_text(row.values), "prediction": prediction}
        if labels:
            record["probabilities"] = {label: finite(share) for label, share in zip(labels, own, strict=True)}
        yield {**record, "correct": is_correct, "log_prob": finite(log_prob)}


def write_predictions(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records as JSON lines; the file is whole or not there.

    Raises:
        FileError: When the file cannot be written.
    """
    with whole_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
