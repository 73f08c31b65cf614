"""Rows that a prompt fixed and broke, and the labels that it takes for others."""

import torch

from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.evaluation.bootstrap import Scores
from ptuning.evaluation.metrics import RowScores
from ptuning.inspection.measures.answers import MOST_ROWS, changes, confusion

LABELS = [f"l{i}" for i in range(12)]


def scored(labels: list[str], own: list[str], predicted: list[str]) -> Scores:
    """Scores of rows of which each gets a label."""
    indices = torch.tensor([labels.index(each) for each in predicted])
    labels_NC = torch.nn.functional.one_hot(indices, len(labels)).float() * 5
    is_correct_N = torch.tensor([a == b for a, b in zip(own, predicted, strict=True)])
    return Scores.one(RowScores(torch.zeros(len(own)), is_correct_N, labels_NC))


def task_of(labels: list[str]) -> Task:
    return Task("{prompt:2}{text}, {note}:", verbalizer={label: f" {label}" for label in labels})


def rows_of(own: list[str]) -> list[Row]:
    return [Row({"text": f"text {i}", "note": "n", "label": each}, f"row {i}") for i, each in enumerate(own)]


def test_rows_that_one_side_alone_answers_are_shown() -> None:
    labels, own = LABELS[:2], ["l0", "l0", "l1", "l1"]
    found = changes(
        task_of(labels),
        rows_of(own),
        scored(labels, own, ["l0", "l1", "l1", "l0"]),
        scored(labels, own, ["l0", "l0", "l0", "l0"]),
    )
    assert found.table.records == [
        {"change": "fixed", "row": "row 1", "text": "text 1 | n", "answer": "l0", "without": "l1", "with": "l0"},
        {"change": "broken", "row": "row 2", "text": "text 2 | n", "answer": "l1", "without": "l1", "with": "l0"},
    ]
    assert found.how.startswith(
        "The prompt answers 1 rows right that it does not without it, and 1 the other way round."
    )
    assert found.chart.heads == ["change", "text", "answer", "without", "with"]


def test_few_of_many_rows_are_shown_and_all_are_counted() -> None:
    labels, own = LABELS[:2], ["l0"] * 20
    found = changes(task_of(labels), rows_of(own), scored(labels, own, ["l1"] * 20), scored(labels, own, own))
    assert found.table.column("row") == [f"row {i}" for i in range(MOST_ROWS)]
    assert "answers 20 rows right" in found.how


def test_written_answers_have_no_predictions() -> None:
    task, rows = Task("{prompt:2}{text}:", " {label}"), rows_of(["x"])
    right, wrong = (Scores.one(RowScores(torch.zeros(1), torch.tensor([each]), None)) for each in (True, False))
    found = changes(task, rows, wrong, right)
    assert [(each["answer"], each["with"]) for each in found.table] == [(" x", None)]
    assert found.chart.heads == ["change", "text", "answer"]


def test_confusion_counts_every_row() -> None:
    labels, own, predicted = LABELS[:3], ["l0", "l0", "l1", "l2"], ["l0", "l2", "l1", "l0"]
    found = confusion(task_of(labels), rows_of(own), scored(labels, own, predicted))
    assert found.chart.is_matrix
    assert found.chart.rows == [["1 l0", 1, 0, 1], ["2 l1", 0, 1, 0], ["3 l2", 1, 0, 0]]
    assert sum(found.table.column("rows")) == 4


def test_of_many_labels_the_commonest_mistakes_are_shown() -> None:
    own, predicted = ["l0", "l0", "l1", "l2"], ["l3", "l3", "l1", "l0"]
    found = confusion(task_of(LABELS), rows_of(own), scored(LABELS, own, predicted))
    assert not found.chart.is_matrix
    assert found.chart.rows == [["l0", "l3", 2], ["l2", "l0", 1]]
