"""Metrics: hand-computed, as sums over parts of the rows, and as records."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptuning.data.examples import Example
from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.evaluation.metrics import Metrics, class_table
from ptuning.evaluation.predictions import prediction_records
from ptuning.evaluation.scores import RowScores

LABELS = ["a", "b", "c"]


def scored(own: list[int], called: list[int], seed: int = 0) -> tuple[RowScores, list[Example]]:
    """Rows of those labels, scored so that these are called."""
    labels_NC = torch.randn(len(own), 3, generator=torch.Generator().manual_seed(seed)) - 3
    for row, label in enumerate(called):
        labels_NC[row, label] = labels_NC[row].max() + 1
    own_N = torch.tensor(own, dtype=torch.long)
    log_probs_N = labels_NC.gather(1, own_N[:, None])[:, 0]
    examples = [Example([1, 2], [7] * (1 + i % 2), label) for i, label in enumerate(own)]
    return RowScores(log_probs_N, labels_NC.argmax(1) == own_N, labels_NC), examples


def test_metrics_of_labels_are_those_computed_by_hand() -> None:
    scores, examples = scored(own=[0, 0, 0, 1, 1, 0], called=[0, 0, 1, 1, 0, 0])
    metrics = Metrics.of(scores, examples, 3)
    assert metrics.confusion == ((3, 1, 0), (1, 1, 0), (0, 0, 0))
    assert metrics.accuracy == pytest.approx(4 / 6)
    first, second, third = metrics.per_class(LABELS)
    assert first == {"label": "a", "precision": 3 / 4, "recall": 3 / 4, "f1": 3 / 4, "num_rows": 4}
    assert second == {"label": "b", "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "num_rows": 2}
    assert third == {"label": "c", "precision": None, "recall": None, "f1": None, "num_rows": 0}
    assert metrics.macro_f1 == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert metrics.loss == pytest.approx(-float(scores.log_probs_N.sum()) / 9)


def test_a_label_that_is_never_called_counts_as_f1_of_zero() -> None:
    metrics = Metrics.of(*scored(own=[0, 0, 1], called=[0, 0, 0]), 3)
    assert [record["f1"] for record in metrics.per_class(LABELS)] == [pytest.approx(4 / 5), 0, None]
    assert metrics.macro_f1 == pytest.approx(2 / 5)


def test_log_loss_is_over_the_labels_alone() -> None:
    scores, examples = scored(own=[0, 1, 2, 1], called=[0, 1, 1, 1])
    assert scores.labels_NC is not None
    own_N = torch.tensor([0, 1, 2, 1])
    expected = torch.nn.functional.cross_entropy(scores.labels_NC, own_N)
    metrics = Metrics.of(scores, examples, 3)
    assert metrics.label_log_loss == pytest.approx(float(expected), rel=1e-5)
    shifted = RowScores(scores.log_probs_N - 5, scores.is_correct_N, scores.labels_NC - 5)
    assert Metrics.of(shifted, examples, 3).label_log_loss == pytest.approx(metrics.label_log_loss, rel=1e-5)
    assert Metrics.of(shifted, examples, 3).loss > metrics.loss


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30), st.integers(0, 30))
@settings(deadline=None)
def test_parts_add_up_to_the_whole(pairs: list[tuple[int, int]], place: int) -> None:
    scores, examples = scored(*map(list, zip(*pairs, strict=True)))
    assert scores.labels_NC is not None
    whole = Metrics.of(scores, examples, 3)
    parts = [
        Metrics.of(
            RowScores(scores.log_probs_N[part], scores.is_correct_N[part], scores.labels_NC[part]), examples[part], 3
        )
        for part in (slice(None, place), slice(place, None))
    ]
    others = iter([parts[1].num_rows, parts[1].num_correct, parts[1].num_label_tokens, parts[1].loss_sum])
    rest = [parts[1].num_cut, parts[1].label_loss_sum, *(count for row in parts[1].confusion for count in row)]
    queue = [*others, *rest]
    added = parts[0].summed(lambda value: value + queue.pop(0))
    assert added.confusion == whole.confusion
    assert added.macro_f1 == pytest.approx(whole.macro_f1, nan_ok=True)
    for one, other in zip(added.as_dict().values(), whole.as_dict().values(), strict=True):
        assert one == pytest.approx(other, rel=1e-9)
    by_hand = [
        2 * sum(a == b == c for a, b in pairs) / (sum(a == c for a, _ in pairs) + sum(b == c for _, b in pairs))
        for c in range(3)
        if any(c in pair for pair in pairs)
    ]
    assert whole.macro_f1 == pytest.approx(sum(by_hand) / len(by_hand))


def test_no_rows_are_valid_json() -> None:
    nothing = RowScores(torch.zeros(0), torch.zeros(0, dtype=torch.bool), torch.zeros(0, 3))
    metrics = Metrics.of(nothing, [], 3)
    assert math.isnan(metrics.accuracy)
    text = json.dumps({**metrics.as_dict(), **metrics.details(LABELS)}, allow_nan=False)
    assert json.loads(text)["macro_f1"] is None


def test_written_answers_have_no_metrics_of_labels() -> None:
    scores = RowScores(torch.tensor([-1.0, -3.0]), torch.tensor([True, False]), None)
    metrics = Metrics.of(scores, [Example([1], [7, 8]), Example([1], [9])], 0)
    assert metrics.as_dict().keys() == {"num_rows", "accuracy", "interval", "loss", "num_cut"}
    assert metrics.loss == pytest.approx(4 / 3)


def test_the_table_shows_what_rows_are_called() -> None:
    metrics = Metrics.of(*scored(own=[0, 0, 0, 1, 1, 0], called=[0, 0, 1, 1, 0, 0]), 3)
    lines = class_table(metrics, LABELS)
    assert lines[0] == "| label | precision | recall | F1 | rows | called a | called b | called c |"
    assert lines[2] == "| a | 0.750 | 0.750 | 0.750 | 4 | 3 | 1 | 0 |"
    assert lines[4] == "| c |  |  |  | 0 | 0 | 0 | 0 |"
    assert lines[-1].startswith("macro-F1 0.625, log-loss over the labels ")


def test_predictions_are_one_record_a_row() -> None:
    task = Task("{prompt:2}{text}", verbalizer={"a": " x", "b": " y", "c": " z"})
    scores, _ = scored(own=[0, 2], called=[0, 1])
    rows = [Row({"text": "one", "label": "a"}, "row 1"), Row({"text": "two", "label": "c"}, "row 2")]
    first, second = map(json.loads, map(json.dumps, prediction_records(scores, rows, task)))
    assert (first["row"], first["answer"], first["prediction"], first["is_correct"]) == ("row 1", "a", "a", True)
    assert (second["row"], second["answer"], second["prediction"], second["is_correct"]) == ("row 2", "c", "b", False)
    assert sum(first["probabilities"].values()) == pytest.approx(1)
    assert max(second["probabilities"], key=second["probabilities"].get) == "b"


def test_predictions_of_written_answers_say_how_likely_they_are() -> None:
    task = Task("{prompt:2}{text}", answer=" {first} {second}")
    scores = RowScores(torch.tensor([-1.5]), torch.tensor([True]), None)
    (record,) = prediction_records(scores, [Row({"text": "x", "first": "1", "second": "2"}, "row 1")], task)
    assert record == {"row": "row 1", "answer": " 1 2", "is_correct": True, "log_prob": -1.5}
