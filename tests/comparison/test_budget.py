"""A budget of time: how many steps and alternatives fit into it."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import ROWS, config_in, job, little, rows

import ptuning
from ptuning.comparison import budget
from ptuning.comparison.heads import OutputLayers
from ptuning.comparison.protocol import Effort, Way
from ptuning.comparison.tuning import PromptTuning
from ptuning.comparison.weights import AllWeights, LoRA
from ptuning.model import Backbone


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still, but for what is added to it."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "num_rates", "expected"),
    [(100, 1, 40), (100, 2, 15), (10, 1, 1), (100_000, 1, 30 * 7)],
    ids=["what is left of evaluations", "shared by rates", "one at least", "thirty passes at most"],
)
def test_steps_fit_into_a_budget(clock: list[float], seconds: float, num_rates: int, expected: int) -> None:
    effort = Effort(num_rates, num_evaluations=10, seconds=seconds)

    def evaluate() -> None:
        clock[0] += 2.0

    assert budget.steps_within(effort, 7, 2.0, evaluate) == expected


def test_a_pace_leaves_out_the_first_steps(clock: list[float]) -> None:
    def steps() -> Iterator[None]:
        for seconds in (50, 20, 1, 2, 3, 2, 2, 9):
            clock[0] += seconds
            yield

    assert budget.pace(steps()) == 2  # the first two are warm-up


@pytest.mark.parametrize(("seconds", "expected"), [(None, 5), (10.0, 3), (1.0, 1)])
def test_tries_end_where_the_next_may_not_fit(clock: list[float], seconds: float | None, expected: int) -> None:
    made = 0
    for _ in budget.tries_within(Effort(seconds=seconds), range(5)):
        clock[0] += 3.0
        made += 1
    assert made == expected


@pytest.mark.parametrize("way", [PromptTuning(), OutputLayers(), LoRA(), AllWeights()], ids=lambda way: way.name)
def test_the_steps_that_fit_are_made_and_those_of_the_trial_are_not_kept(
    way: Way, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()

    def fits(effort: Effort, steps_per_epoch: int, seconds_a_step: float, evaluate: Callable[[], object]) -> int:
        evaluate()
        assert seconds_a_step > 0
        asked.append(steps_per_epoch)
        return 5

    monkeypatch.setattr(sys.modules[type(way).fit.__module__], "steps_within", fits)
    given = job(backbone, tmp_path / "timed", train__max_steps=100)
    timed = way.fit(replace(given, effort=replace(little(given).effort, seconds=60.0)))
    plain = way.fit(little(job(backbone, tmp_path / "counted", train__max_steps=5)))
    assert asked == [3]  # 20 rows, 8 a step
    assert torch.equal(timed.label_scores(rows("test")), plain.label_scores(rows("test")))
    assert timed.chosen == plain.chosen


def test_a_budget_holds_for_every_part(backbone: Backbone, tmp_path: Path) -> None:
    config = config_in(tmp_path, compare__budget="1s", compare__ways=["few-shot", "output-layers"], compare__seeds=1)
    comparison = ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False)
    assert comparison.left_out == {}
    assert int(comparison.results["output-layers"].chosen["step"]) > 3  # the config's steps are not asked
