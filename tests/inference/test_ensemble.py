"""Several prompts' answers become one; what is no ensemble is refused."""

import pytest

from ptuning.errors import PromptError
from ptuning.inference.ensemble import Classification, Ensemble, combined

SCORES = [{"x": 0.9, "y": 0.1}, {"x": 0.4, "y": 0.6}, {"x": 0.2, "y": 0.8}]


def test_mean_is_that_of_the_probabilities():
    answer = combined(SCORES, "mean")
    assert (answer.label, answer.probabilities) == ("x", pytest.approx({"x": 0.5, "y": 0.5}))


def test_majority_is_that_of_the_labels():
    answer = combined(SCORES, "majority")
    assert (answer.label, answer.probabilities) == ("y", pytest.approx({"x": 1 / 3, "y": 2 / 3}))


def test_equal_votes_go_to_the_likelier_label():
    assert combined(SCORES[:2], "majority") == Classification("x", {"x": 0.5, "y": 0.5})
    assert combined([{"x": 0.6, "y": 0.4}, {"x": 0.1, "y": 0.9}], "majority").label == "y"


def test_names_may_be_a_list_and_one_prompt_is_an_ensemble_too():
    assert Ensemble(["a", "b"]) == Ensemble(("a", "b"))
    assert len({Ensemble(["a"]), Ensemble(("a",))}) == 1
    assert combined(SCORES[:1], "majority").label == "x"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ab"], r"Ensemble\('ab'\); expected the names of 1 or more prompts"),
        ([()], r"Ensemble\(\(\)\); expected the names"),
        ([["a", "b"], "avg"], "combine='avg'; expected one of mean, majority"),
    ],
)
def test_what_is_no_ensemble_is_refused(arguments, told):
    with pytest.raises(PromptError, match=told):
        Ensemble(*arguments)
