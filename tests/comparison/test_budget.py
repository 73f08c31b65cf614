"""A budget of time: how many steps and alternatives fit into it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import ROWS, config_in, job, little, rows

import ptuning
from ptuning.comparison import bench, budget, heads, steps, tuning
from ptuning.comparison.heads import OutputLayers
from ptuning.comparison.protocol import Effort, Job, Way
from ptuning.comparison.tuning import PromptTuning
from ptuning.comparison.weights import AllWeights, LoRA
from ptuning.data import Row, Task
from ptuning.errors import ConfigError
from ptuning.model import Backbone
from ptuning.training import Interrupted
from ptuning.training.run import Trainer
from ptuning.training.validator import Validator


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still, but for what is added to it."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def asked(backbone: Backbone, tmp_path: Path) -> Job:
    return job(backbone, tmp_path)


@pytest.mark.parametrize(
    ("seconds", "num_rates", "place", "used", "others", "expected"),
    [
        *((100, 1, 0, 0, 0, 39), (100, 2, 0, 0, 0, 14), (10, 1, 0, 0, 0, 1), (100_000, 1, 0, 0, 0, 30 * 7)),
        *((100, 1, 0, 18, 0, 30), (100, 2, 1, 20, 0, 15), (100, 2, 1, 68, 0, 5), (100, 1, 0, 0, 5, 34)),
    ],
    ids=[
        *("what is left of evaluations", "shared by rates", "one at least", "thirty passes at most"),
        *("what was done before", "no more than a share", "what an earlier rate left", "other evaluations"),
    ],
)
def test_steps_fit_into_a_budget(
    clock: list[float],
    asked: Job,
    seconds: float,
    num_rates: int,
    place: int,
    used: float,
    others: int,
    expected: int,
) -> None:
    given = replace(asked, effort=Effort(num_rates, num_evaluations=10, seconds=seconds), started=clock[0])
    clock[0] += used

    def evaluate() -> None:
        clock[0] += 2.0

    assert budget.steps_within(given, place, 7, 2.0, evaluate, others) == expected


def test_a_pace_leaves_out_the_first_steps(clock: list[float]) -> None:
    def timed() -> Iterator[None]:
        for seconds in (50, 20, 1, 2, 3, 2, 2, 9):
            clock[0] += seconds
            yield

    assert budget.pace(timed()) == 2  # the first two are warm-up


@pytest.mark.parametrize(("seconds", "expected"), [(None, 5), (14.0, 3), (1.0, 1)])
def test_tries_end_where_the_next_may_not_fit(
    clock: list[float], asked: Job, seconds: float | None, expected: int
) -> None:
    given, made = replace(asked, effort=Effort(seconds=seconds), started=clock[0]), 0
    clock[0] += 4.0  # an index is built
    for _ in budget.tries_within(given, range(5)):
        clock[0] += 3.0
        made += 1
    assert made == expected


@pytest.mark.parametrize("way", [PromptTuning(), OutputLayers(), LoRA(), AllWeights()], ids=lambda way: way.name)
def test_the_steps_that_fit_are_made_and_those_of_the_trial_are_not_kept(
    way: Way, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()

    def fits(
        job: Job,
        place: int,
        steps_per_epoch: int,
        seconds_a_step: float,
        evaluate: Callable[[], object],
        others: int = 0,
    ) -> int:
        evaluate()
        assert seconds_a_step > 0
        asked.append(steps_per_epoch)
        return 5

    for module in (steps, tuning):
        monkeypatch.setattr(module, "steps_within", fits)
    given = job(backbone, tmp_path / "timed", train__max_steps=100)
    timed = way.fit(replace(given, effort=replace(little(given).effort, seconds=60.0)))
    plain = way.fit(little(job(backbone, tmp_path / "counted", train__max_steps=5, train__eval_steps=3)))
    assert asked == [3]  # 20 rows, 8 a step
    assert torch.equal(timed.label_scores(rows("test")), plain.label_scores(rows("test")))
    assert timed.chosen == plain.chosen


def test_a_budget_holds_for_every_part(backbone: Backbone, tmp_path: Path) -> None:
    config = config_in(tmp_path, compare__budget="1s", compare__ways=["few-shot", "output-layers"], compare__seeds=1)
    comparison = ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False)
    assert comparison.left_out == {}
    assert int(comparison.results["output-layers"].chosen["step"]) > 3  # the config's steps are not asked


def test_validations_of_a_trial_are_no_part_of_its_steps(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated, paces, whole = list[int](), list[float](), Validator.validate

    def slow(self: Validator, step: int, prompt: Any) -> Any:
        validated.append(step)
        time.sleep(1)
        return whole(self, step, prompt)

    def fits(job: Job, place: int, steps_per_epoch: int, seconds_a_step: float, *more: object) -> int:
        paces.append(seconds_a_step)
        return 2

    monkeypatch.setattr(Validator, "validate", slow)
    monkeypatch.setattr(tuning, "steps_within", fits)
    PromptTuning().fit(replace(job(backbone, tmp_path), effort=Effort(seconds=60.0, num_evaluations=1)))
    assert validated == [budget.TRIAL_STEPS, 2]
    assert paces[0] < 1


def test_a_prompt_that_is_trained_on_a_budget_is_gone_on_with(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"compare__ways": ["prompt-tuning"], "compare__seeds": 1, "compare__budget": "60s"}
    after, fits, made = Trainer._after_step, list[int](), list[int]()

    def six(*arguments: object) -> int:
        fits.append(6)
        return 6

    def scores(folder: str) -> Any:
        config = config_in(tmp_path / folder, **settings, train__save_steps=2)
        comparison = ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False)
        assert comparison.left_out == {}
        way = comparison.results["prompt-tuning"]
        return way.scores, way.chosen

    monkeypatch.setattr(tuning, "steps_within", six)
    whole = scores("whole")

    def killed(self: Trainer, record: Any, bar: Any) -> None:
        if self.directory.path.name != "pace":
            made.append(record.step)
            if made == [1, 2, 3, 4, 5]:
                raise KeyboardInterrupt
        after(self, record, bar)

    monkeypatch.setattr(Trainer, "_after_step", killed)
    with pytest.raises(Interrupted):
        scores("killed")
    assert scores("killed") == whole
    assert made == [1, 2, 3, 4, 5, 5, 6]
    assert fits == [6, 6]  # the steps that were found to fit are kept, and no trial is made again


def test_settings_say_how_many_evaluations_and_demonstrations_all_ways_have(tmp_path: Path) -> None:
    own = bench.effort_of(config_in(tmp_path, train__max_steps=50, train__eval_steps=20, compare__demonstrations=6))
    assert (own.num_evaluations, own.demonstrations) == (3, (1, 3, 6))
    whole = bench.effort_of(config_in(tmp_path, train__max_steps=50))
    assert (whole.num_evaluations, whole.demonstrations) == (Effort().num_evaluations, Effort().demonstrations)
    with pytest.raises(ConfigError, match=r"compare\.demonstrations: 0; expected from 1 to 256"):
        config_in(tmp_path, compare__demonstrations=0)


def test_the_output_layers_read_only_rows_that_a_step_reads(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, whole = list[str](), heads.hidden_states

    def noted(backbone: Backbone, task: Task, rows: Sequence[Row]) -> Any:
        read.extend(row.where for row in rows if row.where.startswith("train"))
        return whole(backbone, task, rows)

    monkeypatch.setattr(heads, "hidden_states", noted)
    given = job(backbone, tmp_path, train__max_steps=5, train__per_device_train_batch_size=5)
    fitted = heads.OutputLayers().fit(given)
    assert len(read) == len(set(read)) == len(given.train)  # the fifth step begins again
    read.clear()
    heads.OutputLayers().fit(job(backbone, tmp_path, train__max_steps=2, train__per_device_train_batch_size=5))
    assert len(read) == 10
    assert fitted.num_trained
