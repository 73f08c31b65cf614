"""Each row's record says what was expected, what was predicted and how likely, and a file gives the records back."""

import json
import math

import pytest
import torch

from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.errors import FileError
from ptuning.evaluation.metrics import RowScores
from ptuning.evaluation.predictions import prediction_records, write_predictions

TASK = Task("{prompt:2}{text}", verbalizer={"нет": " no", "yes": " yes"})
ROWS = [Row({"text": "a", "label": "yes"}, "rows.csv line 2"), Row({"text": "b", "label": "yes"}, "rows.csv line 3")]
SCORES = RowScores(torch.tensor([-1.0, -3.0]), torch.tensor([True, False]), torch.tensor([[-2.0, -1.0], [-0.5, -3.0]]))


def test_records_of_labels():
    first, second = prediction_records(TASK, ROWS, SCORES)
    assert first == {
        "row": "rows.csv line 2",
        "label": "yes",
        "prediction": "yes",
        "probabilities": {"нет": pytest.approx(1 / (1 + math.e)), "yes": pytest.approx(math.e / (1 + math.e))},
        "correct": True,
        "log_prob": -1.0,
    }
    assert (second["prediction"], second["correct"], second["log_prob"]) == ("нет", False, -3.0)


@pytest.mark.parametrize(("written", "expected"), [(["a cat", "dog"], ["a cat", "dog"]), (None, [None, None])])
def test_records_of_written_answers(written, expected):
    task, scores = (
        Task("{prompt:2}{text}", answer="a {label}."),
        RowScores(SCORES.log_probs_N, SCORES.is_correct_N, None),
    )
    records = list(prediction_records(task, ROWS, scores, written))
    assert [record["prediction"] for record in records] == expected
    assert records[0] == {
        "row": "rows.csv line 2",
        "answer": "a yes.",
        "prediction": expected[0],
        "correct": True,
        "log_prob": -1.0,
    }


def test_file_gives_the_records_back(tmp_path):
    records = list(prediction_records(TASK, ROWS, SCORES))
    write_predictions(tmp_path / "new" / "predictions.jsonl", records)
    text = (tmp_path / "new" / "predictions.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == records
    assert "нет" in text


def test_numbers_that_json_cannot_hold_are_null(tmp_path):
    impossible = RowScores(torch.tensor([-math.inf] * 2), SCORES.is_correct_N, torch.full((2, 2), -math.inf))
    (first, _) = prediction_records(TASK, ROWS, impossible)
    assert first["log_prob"] is None
    assert set(first["probabilities"].values()) == {None}
    write_predictions(tmp_path / "predictions.jsonl", [first])


def test_file_is_whole_or_not_there(tmp_path):
    def failing():
        yield {"row": 1}
        raise KeyboardInterrupt

    path = tmp_path / "predictions.jsonl"
    path.write_text("before\n")
    with pytest.raises(KeyboardInterrupt):
        write_predictions(path, failing())
    assert path.read_text() == "before\n"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileError, match="cannot be written"):
        write_predictions(path / "below", [])
