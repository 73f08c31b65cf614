"""Decodings of prompts of one task are compared with those of other tasks."""

import pytest
from synthetic import cloud

from ptuning.errors import PromptError
from ptuning.inspection.measures.stability import COLUMNS, stability


def test_same_task_overlaps_more_than_other_tasks():
    vocabulary = cloud()
    tasks = {
        "one": [vocabulary.rows([1, 2, 3, 4]), vocabulary.rows([1, 2, 5, 6])],
        "other": [vocabulary.rows([7, 8, 9, 4]), vocabulary.rows([7, 8, 10, 11])],
    }
    same, other = stability(tasks, vocabulary).table
    assert all(list(record) == list(COLUMNS) for record in (same, other))
    assert (same["pairs"], same["num_pairs"]) == ("same task", 2)
    assert same["overlap"] == pytest.approx((2 / 6 + 2 / 6) / 2)
    assert same["by_position"] == pytest.approx(0.5)
    assert (other["pairs"], other["num_pairs"]) == ("other task", 4)
    assert other["overlap"] == pytest.approx((1 / 7) / 4)
    assert (other["least"], other["most"]) == (0.0, pytest.approx(1 / 7))


def test_prompts_of_other_lengths_have_no_positions_in_common():
    vocabulary = cloud()
    (same,) = stability({"one": [vocabulary.rows([1, 2]), vocabulary.rows([2, 1, 3])]}, vocabulary).table
    assert same["by_position"] is None
    assert same["overlap"] == pytest.approx(2 / 3)


def test_one_prompt_alone_is_refused():
    with pytest.raises(PromptError, match="1 prompts to compare; expected two or more"):
        stability({"one": [cloud().rows([1])]}, cloud())
