"""A prompt and the words alone are compared row by row, with the chance that a difference is none."""

import math

import pytest
import torch

from ptuning.evaluation.comparison import Comparison, sign_test
from ptuning.evaluation.scoring import RowScores


def scores(is_correct: list[int], log_probs: list[float] | None = None) -> RowScores:
    return RowScores(torch.tensor(log_probs or [0.0] * len(is_correct)), torch.tensor(is_correct).bool(), None)


@pytest.mark.parametrize(
    ("num_up", "num_down", "expected"),
    [(0, 0, 1.0), (1, 1, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (0, 6, 0.03125), (9, 1, 22 / 1024), (8, 2, 112 / 1024)],
)
def test_sign_test_is_exact(num_up: int, num_down: int, expected: float) -> None:
    assert sign_test(num_up, num_down) == pytest.approx(expected)


def test_sign_test_of_many_rows() -> None:
    assert sign_test(50_000, 50_000) == pytest.approx(1.0)
    assert sign_test(50_500, 49_500) == pytest.approx(math.erfc(999 / math.sqrt(1e5) / math.sqrt(2)), rel=1e-3)


@pytest.mark.parametrize(
    ("one", "other", "is_better"),
    [([1] * 6, [0] * 6, True), ([1] * 5, [0] * 5, False), ([0] * 6, [1] * 6, False), ([1] * 9, [1] * 9, False)],
)
def test_label_is_right_more_often_only_where_the_test_says_so(one, other, is_better) -> None:
    assert Comparison.of(scores(one), scores(other), is_classification=True).is_better is is_better


def test_rows_that_both_sides_get_right_or_wrong_do_not_count() -> None:
    found = Comparison.of(scores([1, 1, 0, 0, 1]), scores([1, 0, 1, 0, 0]), is_classification=True)
    assert found.as_dict() == {
        "num_rows": 5,
        "measure": "accuracy",
        "gain": pytest.approx(0.2),
        "is_better": False,
        "num_only_with": 2,
        "num_only_without": 1,
        "p_value": pytest.approx(1.0),
    }
    assert str(found) == "accuracy 0.600 against 0.400 on 5 rows (p = 1)"


def test_written_answers_are_compared_by_their_log_probability() -> None:
    found = Comparison.of(scores([0] * 4, [-1.0, -2.0, -3.0, -2.0]), scores([0] * 4, [-2.0] * 4), False)
    half = 1.959963984540054 * math.sqrt((2 / 3) / 4)  # the gains are 1, 0, -1 and 0
    assert found.gain == pytest.approx(0.0)
    assert found.interval == pytest.approx((-half, half))
    assert not found.is_better
    better = Comparison.of(scores([0] * 4, [-1.0, -1.1, -0.9, -1.0]), scores([0] * 4, [-2.0] * 4), False)
    assert better.is_better
    assert str(better).startswith("mean log-probability of an answer 1.000 nats higher on 4 rows (95 % interval +0.9")
    one = Comparison.of(scores([0], [-1.0]), scores([0], [-2.0]), False)
    assert (one.is_better, one.as_dict()["interval"]) == (False, None)


def test_parts_add_up_to_the_whole() -> None:
    one, other = [1, 1, 0, 1, 0], [0, 1, 1, 0, 0]
    one_lp, other_lp = [-1.0, -0.5, -2.0, -0.1, -3.0], [-1.5, -0.7, -1.0, -0.4, -3.5]
    whole = Comparison.of(scores(one, one_lp), scores(other, other_lp), False)
    parts = [
        Comparison.of(scores(one[p], one_lp[p]), scores(other[p], other_lp[p]), False)
        for p in (slice(0, 2), slice(2, 5))
    ]
    seconds = iter(
        [
            parts[1].num_rows,
            parts[1].num_right_with,
            parts[1].num_right_without,
            parts[1].num_only_with,
            parts[1].num_only_without,
            parts[1].gain_sum,
            parts[1].gain_square_sum,
        ]
    )
    found = parts[0].summed(lambda value: value + next(seconds))
    assert found.as_dict() == {key: pytest.approx(value) for key, value in whole.as_dict().items()}
