"""Whole comparisons in which it is planted which rows each way gets right: the way that is right for it is recommended.

A tiny random model cannot read facts or follow an instruction; the rows, the parts, the files and the rule are real.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import review_rows
from small import config_in

import ptuning
from ptuning.comparison import run
from ptuning.comparison.protocol import Fitted, Job, Way, labels_of
from ptuning.comparison.report import Comparison
from ptuning.comparison.storage import write_own
from ptuning.comparison.ways import WAYS
from ptuning.data import Row, Task
from ptuning.model import Backbone


class PlantedFitted(Fitted):
    """Right on a share of the rows."""

    def __init__(self, task: Task, share: float, luck: str | None) -> None:
        self.task, self.share, self.luck = task, share, luck

    def label_scores(self, rows: Sequence[Row]) -> torch.Tensor:
        """A row is as hard for every way, unless luck has a name."""
        right = [random.Random(f"{self.luck} {row.values['text']}").random() < self.share for row in rows]
        own = [
            place if is_right else 1 - place for place, is_right in zip(labels_of(self.task, rows), right, strict=True)
        ]
        return torch.nn.functional.one_hot(torch.tensor(own), 2).float()

    def save(self, directory: Path) -> None:
        write_own(directory, {"kind": "planted", "task": vars(self.task)})


class Planted(Way):
    """A way whose scores are planted, one share a seed."""

    def __init__(self, own: Way, shares: Sequence[float], is_lucky: bool) -> None:
        self.own, self.shares, self.is_lucky = own, shares, is_lucky
        self.name, self.title, self.facts = own.name, own.title, own.facts  # type: ignore[misc]
        self.reads_rows, self.depends_on_chance = own.reads_rows, len(shares) > 1  # type: ignore[misc]

    def fit(self, job: Job) -> Fitted:
        luck = f"{self.name} {job.seed}" if self.is_lucky else None
        return PlantedFitted(job.task, self.shares[job.seed], luck)


@pytest.fixture
def planted(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compares ways that are right on shares of the rows."""

    def compared(
        shares: Mapping[str, Sequence[float]], num_train: int, num_test: int = 500, is_lucky: bool = False, **needs: Any
    ) -> Comparison:
        ways = [Planted(way, shares[way.name], is_lucky) for way in WAYS if way.name in shares]
        assert len(ways) == len(shares)
        monkeypatch.setattr(run, "ways_named", lambda names: ways)
        counts = {"train": num_train, "validation": 40, "test": num_test}
        rows = {split: review_rows(count, 10_000 * i) for i, (split, count) in enumerate(counts.items())}
        config = config_in(
            tmp_path / str(num_train), compare__seeds=3, **{f"compare__{name}": value for name, value in needs.items()}
        )
        return ptuning.compare(config, rows=rows, backbone=backbone, verbose=False)

    return compared


WEIGHTS = (0.6, 0.62, 0.61)


def test_facts_that_only_the_documents_hold_are_looked_up(planted: Any) -> None:
    shares = {
        "zero-shot": [0.5],
        "few-shot": WEIGHTS,
        "retrieved-bm25": [0.92],
        "lora": WEIGHTS,
        "all-weights": WEIGHTS,
    }
    comparison = planted(shares, 400)
    told = comparison.recommendation
    assert (told.way, told.is_told_apart) == ("retrieved-bm25", True)
    by_rule = {rule.says.partition(",")[0]: rule.outcome for rule in comparison.rules}
    assert by_rule["Where what is needed differs by request"] == "held"
    often = planted({**shares, "all-weights": (0.95, 0.96, 0.95)}, 401, data_changes_often=True)
    assert often.recommendation.way == "retrieved-bm25"


def test_with_20_rows_prompting_is_recommended(planted: Any) -> None:
    shares = {
        "zero-shot": [0.6],
        "few-shot": (0.8, 0.79, 0.82),
        "lora": (0.9, 0.7, 0.88),
        "all-weights": (0.5, 0.9, 0.7),
    }
    comparison = planted(shares, 20)
    assert comparison.recommendation.way == "few-shot"
    assert any(each.startswith("lora is out: with few training rows") for each in comparison.recommendation.reasons)
    assert comparison.rules[0].why.endswith("With 20 rows.")


def test_a_task_that_an_instruction_solves_needs_nothing_more(planted: Any) -> None:
    solved = (0.952, 0.955, 0.95)
    shares = {"zero-shot": [0.6], "instruction": [0.95], "few-shot": solved, "prompt-tuning": solved, "lora": solved}
    comparison = planted(shares, 400)
    assert comparison.recommendation.way == "instruction"
    assert not comparison.recommendation.is_told_apart


def test_with_thousands_of_rows_weights_win_where_they_are_better(planted: Any) -> None:
    shares = {
        **{"zero-shot": [0.6], "few-shot": (0.7, 0.72, 0.69), "features": [0.85], "prompt-tuning": (0.88, 0.89, 0.9)},
        **{"output-layers": (0.87, 0.86, 0.87), "all-weights": (0.96, 0.97, 0.965)},
    }
    comparison = planted(shares, 3000)
    told = comparison.recommendation
    assert (told.way, told.runner_up, told.is_told_apart) == ("all-weights", "prompt-tuning", True)
    outcomes = [rule.outcome for rule in comparison.rules]
    assert outcomes[:4] == ["not told", "failed", "not told", "failed"]


def test_where_nothing_can_be_told_apart_it_says_so(planted: Any) -> None:
    shares = {name: [0.7] for name in ("zero-shot", "instruction", "features", "all-weights")}
    comparison = planted(shares, 400, num_test=40, is_lucky=True)
    told = comparison.recommendation
    assert told.way == "zero-shot"
    assert told.sentence.startswith("Nothing can be told apart on these 40 rows.")
    outcomes = {rule.outcome for rule in comparison.rules[:5]}
    assert outcomes == {"not told"}
