"""What is measured: labels that are right, or written texts beside the expected ones."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import VERBALIZER, WRITING, config_in, job, rows

from ptuning.comparison.goals import LabelGoal, TextGoal
from ptuning.comparison.measures import MEANINGS
from ptuning.comparison.protocol import SkippedError, Writer, Writing
from ptuning.comparison.ways import WAYS
from ptuning.data import Row, Task
from ptuning.evaluation import has_rouge
from ptuning.model import Backbone

TASK = Task("review: {text}", " {label}")


class Planted(Writer):
    """Answers as it is told to."""

    def __init__(self, texts: Sequence[str], losses: Sequence[float] = ()) -> None:
        self.texts, self.losses = list(texts), list(losses)

    def label_scores(self, rows: Sequence[Row]) -> torch.Tensor:
        return torch.eye(2)[[list(VERBALIZER).index(text) for text in self.texts]]

    def answers(self, rows: Sequence[Row], writing: Writing) -> list[str]:
        return [text[: writing.max_new_tokens] for text in self.texts]

    def answer_losses(self, rows: Sequence[Row]) -> torch.Tensor:
        return torch.tensor(self.losses)

    def save(self, directory: Path) -> None:
        raise AssertionError


def labelled(*labels: str) -> list[Row]:
    return [Row({"text": "a film", "label": label}, "a row") for label in labels]


def test_labels_are_right_or_not() -> None:
    goal, given = LabelGoal(replace(TASK, answer="{label}", verbalizer=VERBALIZER)), labelled("positive", "negative")
    fitted = Planted(["positive", "positive"])
    assert goal.answers(fitted, given) == ["positive", "positive"]
    assert goal.scores(fitted, given, ["positive", "positive"]) == {"accuracy": [1.0, 0.0]}
    assert (goal.measure, goal.writing, goal.about) == ("accuracy", None, {})


def test_texts_are_like_the_expected_ones_or_not() -> None:
    goal, given = TextGoal(TASK, Writing(9)), labelled("very good", "bad", "dull plot")
    fitted = Planted([" very good", " bxd", ""], [0.5, 1.0, 2.0])
    answers = goal.answers(fitted, given)
    assert answers == [" very goo", " bxd", ""]
    found = goal.scores(fitted, given, [" very good ", " bxd", ""])
    assert next(iter(found)) == goal.measure == "character F1"
    assert found["character F1"] == pytest.approx([1.0, 2 / 3, 0.0])
    assert found["exact match"] == [1.0, 0.0, 0.0]
    assert found["loss"] == [0.5, 1.0, 2.0]
    assert ("ROUGE-L" in found) == has_rouge()
    assert found.keys() <= MEANINGS.keys()


@pytest.mark.parametrize(
    ("label", "stops", "told"),
    [
        ("good", ("\n",), "an end-of-text token, a line break or 3 tokens"),
        ("good\nbad", ("\n\n",), "an end-of-text token, a blank line or {} tokens"),
        ("good\n\nbad", (), "an end-of-text token or {} tokens"),
    ],
)
def test_an_answer_ends_where_expected_ones_do(
    backbone: Backbone, label: str, stops: tuple[str, ...], told: str
) -> None:
    goal = TextGoal.of(backbone, TASK, labelled("a film", label))
    assert goal.writing.stop_strings == stops
    ids = [backbone.tokenizer(f" {each}", add_special_tokens=False)["input_ids"] for each in ("a film", label)]
    assert goal.writing.max_new_tokens == 1 + max(map(len, ids))  # and the end
    assert goal.about == {"an answer ends at": told.format(goal.writing.max_new_tokens)}


def test_ways_that_know_labels_alone_are_skipped() -> None:
    goal = TextGoal(TASK, Writing(3))
    skipped = [way for way in WAYS if way.name in ("tf-idf", "features", "output-layers")]
    for way in skipped:
        with pytest.raises(SkippedError, match=r"^texts to write; expected labels, in data.verbalizer. Leave this"):
            goal.require(way)
    for way in WAYS:
        if way not in skipped:
            goal.require(way)
    for way in WAYS:
        LabelGoal(TASK).require(way)


def test_the_loss_chooses_where_texts_are_written(backbone: Backbone, tmp_path: Path) -> None:
    given = job(backbone, tmp_path, **WRITING)
    losses = torch.linspace(1, 3, len(given.validation)).tolist()
    assert given.score(Planted([], losses)) == pytest.approx(-2.0)
    labels = job(backbone, tmp_path)
    assert labels.score(Planted([row.values["label"] for row in rows("validation")])) == 1.0
    assert config_in(tmp_path, **WRITING).data.verbalizer is None
