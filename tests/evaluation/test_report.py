"""What an evaluation says in sentences above its tables."""

import pytest
import torch

from ptuning.data import Example
from ptuning.evaluation import WITH, WITHOUT, Evaluation, Metrics, RowScores
from ptuning.evaluation.report import results_report

LABELS = ("good", "bad")


def side(predicted: list[int], labels: list[int]) -> Evaluation:
    """What rows come to whose predictions and labels are given by number."""
    own, given = torch.tensor(labels), torch.tensor(predicted)
    labels_NC = torch.nn.functional.one_hot(given, 2).float()
    scores = RowScores(labels_NC.gather(1, own[:, None])[:, 0], own == given, labels_NC)
    return Evaluation(Metrics.of(scores, [Example([1], [2], label) for label in labels]), scores, 1)


def test_a_prompt_that_is_better_is_said_to_be() -> None:
    labels = [0, 1] * 10
    lines = results_report({WITHOUT: side([0] * 20, labels), WITH: side(labels, labels)}, LABELS)
    assert lines[0].startswith("The prompt is shown to be better than the same words without it: accuracy 1.000")
    assert lines[1] == f"{WITHOUT}: every row is given the label good; its accuracy is that label's share."
    assert lines[2] == ""


def test_a_prompt_that_is_not_shown_to_be_better_is_said_not_to_be() -> None:
    labels = [0, 1, 1, 1]
    lines = results_report({WITHOUT: side([0, 1, 0, 0], labels), WITH: side([1] * 4, labels)}, LABELS)
    assert lines[0].startswith("The prompt is not shown to be better")
    assert lines[1] == f"{WITH}: every row is given the label bad; its accuracy is that label's share."


@pytest.mark.parametrize(("predicted", "labels"), [([0, 1], [0, 1]), ([0, 0], [0, 0])])
def test_one_side_of_several_labels_needs_no_sentence(predicted: list[int], labels: list[int]) -> None:
    assert results_report({WITH: side(predicted, labels)}, LABELS)[0].startswith("|")
