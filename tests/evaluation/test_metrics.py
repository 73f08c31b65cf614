"""Metrics are sums over rows: they agree with numbers worked out by hand, and with counting row by row."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptuning.data.examples import Example
from ptuning.evaluation.classes import class_report
from ptuning.evaluation.metrics import ClassScores, Metrics, RowScores

NAMES = ["world", "sport", "science"]
BY_HAND = ((3, 1, 0), (2, 2, 0), (0, 0, 0))  # true down, predicted across


def measured(confusion):
    num_rows = sum(map(sum, confusion))
    right = sum(row[i] for i, row in enumerate(confusion))
    return Metrics(num_rows, right, num_rows, 2.0, label_loss_sum=4.0, confusion=tuple(map(tuple, confusion)))


def scored(labels_NC, labels):
    """Scores of rows with these log-probabilities of the labels' texts, and the rows."""
    labels_NC, own_N = torch.tensor(labels_NC), torch.tensor(labels)
    own = labels_NC.gather(1, own_N[:, None])[:, 0]
    examples = [Example([5], [1] * (1 + i % 2), label, was_cut=i % 3 == 0) for i, label in enumerate(labels)]
    return RowScores(own, labels_NC.argmax(1) == own_N, labels_NC), examples


def rows(num_labels):
    scores = st.lists(st.floats(-20, 0, width=32), min_size=num_labels, max_size=num_labels)
    return st.lists(st.tuples(scores, st.integers(0, num_labels - 1)), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("num_correct", "num_rows", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (8, 10, 0.4902, 0.9433),
        (10, 10, 0.7225, 1.0),
        (500, 1000, 0.4691, 0.5309),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_interval_is_wilsons(num_correct, num_rows, low, high):
    assert Metrics(num_rows, num_correct, num_rows, 1.0).interval == pytest.approx((low, high), abs=5e-5)


def test_metrics_follow_from_their_counts():
    metrics = Metrics(num_rows=1600, num_correct=1200, num_label_tokens=3200, loss_sum=800.0, num_cut=3)
    assert (metrics.accuracy, metrics.loss) == (0.75, 0.25)
    assert str(metrics) == "accuracy 0.750 (0.728 to 0.771) on 1,600 rows, loss 0.250"
    assert metrics.as_dict() == {
        "num_rows": 1600,
        "accuracy": 0.75,
        "interval": list(metrics.interval),
        "loss": 0.25,
        "num_cut": 3,
    }


def test_scores_per_class_are_those_worked_out_by_hand():
    metrics = measured(BY_HAND)
    assert metrics.per_class == [
        ClassScores(3 / 5, 3 / 4, pytest.approx(2 / 3), 4),
        ClassScores(2 / 3, 2 / 4, pytest.approx(4 / 7), 4),
        ClassScores(None, None, None, 0),  # neither true nor predicted
    ]
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 4 / 7) / 2)
    assert metrics.label_log_loss == 0.5
    only_predicted = measured([[1, 1], [0, 0]]).per_class[1]
    assert only_predicted == ClassScores(0.0, None, 0.0, 0)
    assert measured([[1, 0], [1, 0]]).per_class[1] == ClassScores(None, 0.0, 0.0, 1)


@given(rows(3))
def test_every_metric_equals_counting_row_by_row(pairs):
    labels_NC, labels = map(list, zip(*pairs, strict=True))
    metrics = Metrics.of(*scored(labels_NC, labels))
    predicted = [row.index(max(row)) for row in labels_NC]
    outcomes = list(zip(labels, predicted, strict=True))
    f1s = []
    for k, scores in enumerate(metrics.per_class):
        both = sum(pair == (k, k) for pair in outcomes)
        assert [metrics.confusion[k][j] for j in range(3)] == [outcomes.count((k, j)) for j in range(3)]
        assert scores.num_rows == labels.count(k)
        assert scores.recall == (both / labels.count(k) if k in labels else None)
        assert scores.precision == (both / predicted.count(k) if k in predicted else None)
        if scores.precision and scores.recall:
            assert scores.f1 == pytest.approx(2 / (1 / scores.precision + 1 / scores.recall))
        else:
            assert scores.f1 == (0.0 if k in labels + predicted else None)
        f1s += [] if scores.f1 is None else [scores.f1]
    assert metrics.macro_f1 == pytest.approx(sum(f1s) / len(f1s))
    assert metrics.num_correct == sum(metrics.confusion[k][k] for k in range(3)) == sum(a == b for a, b in outcomes)
    direct = [math.log(sum(map(math.exp, row))) - row[label] for row, label in pairs]
    assert metrics.label_log_loss == pytest.approx(sum(direct) / len(direct), rel=1e-5, abs=1e-6)
    json.dumps(metrics.as_dict(NAMES), allow_nan=False)


@given(rows(3), st.integers(0, 12))
def test_metrics_of_parts_add_up_to_those_of_the_whole(pairs, cut):
    scores, examples = scored(*map(list, zip(*pairs, strict=True)))

    def part(which):
        own = RowScores(scores.log_probs_N[which], scores.is_correct_N[which], scores.labels_NC[which])
        return Metrics.of(own, examples[which])

    first, second, whole = part(slice(0, cut)), part(slice(cut, None)), part(slice(None))
    added = Metrics.of_sums([own + others for own, others in zip(first.sums, second.sums, strict=True)])
    assert added.sums == pytest.approx(whole.sums, rel=1e-5)
    assert (added.confusion, added.num_rows, added.num_cut) == (whole.confusion, whole.num_rows, whole.num_cut)
    assert (added.num_label_tokens, added.num_correct) == (whole.num_label_tokens, whole.num_correct)
    assert Metrics.of_sums(whole.sums) == whole


@pytest.mark.parametrize("confusion", [(), [[0, 0], [0, 0]]])
def test_what_is_undefined_is_null_in_json(confusion):
    told = json.loads(json.dumps(Metrics(0, 0, 0, 0.0, confusion=confusion).as_dict(["a", "b"]), allow_nan=False))
    assert told["accuracy"] is told["loss"] is None
    assert ("macro_f1" in told) == ("per_class" in told) == ("confusion" in told) == bool(confusion)
    if confusion:
        assert told["macro_f1"] is told["label_log_loss"] is None
        assert told["per_class"]["a"] == {"precision": None, "recall": None, "f1": None, "num_rows": 0}
    assert Metrics(1, 0, 1, math.inf).as_dict()["loss"] is None


def test_classes_are_told_by_name_only_where_names_are_given():
    metrics = measured(BY_HAND)
    plain, told = metrics.as_dict(), metrics.as_dict(NAMES)
    assert plain == {key: value for key, value in told.items() if key not in ("per_class", "confusion")}
    assert told["confusion"] == {"labels": NAMES, "counts": [[3, 1, 0], [2, 2, 0], [0, 0, 0]]}
    assert list(told["per_class"]) == NAMES
    assert told["per_class"]["world"] == {
        "precision": 0.6,
        "recall": 0.75,
        "f1": pytest.approx(2 / 3),
        "num_rows": 4,
    }


@pytest.mark.parametrize(
    ("confusion", "says_more"),
    [([[3, 0], [0, 2]], False), ([[4, 0], [0, 2]], True), ([[1, 1], [0, 0]], True), ([[1, 0, 0]] * 3, True)],
)
def test_line_has_the_macro_f1_where_the_accuracy_alone_could_mislead(confusion, says_more):
    metrics = measured(confusion)
    assert str(metrics).endswith(f", macro-F1 {metrics.macro_f1:.3f}") == says_more
    assert "\n" not in str(metrics)


def test_report_has_a_line_for_each_class_and_the_confusion_matrix():
    assert class_report(measured(BY_HAND), NAMES) == [
        "macro-F1 0.619, log-loss over the labels 0.500 nats; always naming the commonest label: accuracy 0.500",
        "label    precision  recall     F1  rows",
        "world        0.600   0.750  0.667     4",
        "sport        0.667   0.500  0.571     4",
        "science          -       -      -     0",
        "rows by true label (down) and predicted label (across)  1  2  3",
        "1 world                                                 3  1  0",
        "2 sport                                                 2  2  0",
        "3 science                                               0  0  0",
    ]
    assert class_report(Metrics(1, 1, 1, 1.0), []) == []


def test_report_of_many_classes_has_no_matrix():
    for num_labels, num_lines in ((12, 2 + 12 + 13), (13, 2 + 13)):
        eye = [[int(i == j) for j in range(num_labels)] for i in range(num_labels)]
        assert len(class_report(measured(eye), [f"class {i}" for i in range(num_labels)])) == num_lines


@pytest.mark.parametrize(("num_correct", "expected"), [(50, 0.049), (90, 0.030), (100, 0.009)])
def test_the_standard_error_is_above_zero(num_correct: int, expected: float) -> None:
    metrics = Metrics(100, num_correct, 100, 1.0)
    assert metrics.standard_error == pytest.approx(expected, abs=0.001)
