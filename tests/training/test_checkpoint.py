"""A checkpoint brings back the loop and the best step, and knows what it was made with."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ptuning.errors import TrainingError
from ptuning.training.checkpoint import checkpoint_of, require_same, restore
from ptuning.training.distributed import accelerator_on
from ptuning.training.loop import Loop, LoopSettings, StepWork
from ptuning.training.memory import TokenLimit
from ptuning.training.run_directory import STATE, RunDirectory
from ptuning.training.validation import Best


def loop_of(module: nn.Module) -> Loop:
    def add_gradients(module: nn.Module, scale: float) -> float:
        loss = module(torch.ones(1, 2)).square().sum()
        (loss * scale).backward()
        return loss.item()

    return Loop(
        module, lambda _: StepWork(1, 1, add_gradients), LoopSettings(9, 0.1), accelerator_on(torch.device("cpu"))
    )


def test_checkpoint_brings_back_the_loop_and_the_best_step(tmp_path: Path) -> None:
    loop, best, limit = loop_of(nn.Linear(2, 1)), Best(), TokenLimit("auto")
    limit.num_tokens = 60
    steps = loop.steps()
    for value in (3.0, 2.0, 2.5, 2.0):
        best.is_improved_by(next(steps).step, value, value)
    assert best == Best(step=2, value=2.0, loss=2.0, num_evaluations_without_improvement=2)
    RunDirectory(tmp_path).save_checkpoint("last", checkpoint_of(loop, best, limit, {"rows": "a digest"}))
    saved = RunDirectory(tmp_path).load_checkpoint("last")
    assert saved is not None
    assert tuple(saved) == STATE
    other, found, fixed = loop_of(nn.Linear(2, 1)), TokenLimit("auto"), TokenLimit(100)
    assert restore(saved, other, found) == restore(saved, other, fixed) == best
    assert (found.num_tokens, fixed.num_tokens) == (60, 100)
    assert other.progress == loop.progress
    assert [record.loss for record in other.steps()] == [record.loss for record in loop.steps()]


def test_other_content_is_named(tmp_path: Path) -> None:
    saved = {"made_with": {"training rows": "a", "number of processes": 1}}
    require_same(saved, {"training rows": "a", "number of processes": 1, "validation rows": "b"}, tmp_path)
    with pytest.raises(
        TrainingError, match="with other training rows and number of processes; expected what the run was"
    ):
        require_same(saved, {"training rows": "b", "number of processes": 2}, tmp_path)


def test_a_later_prompt_is_kept_where_it_is_no_worse_than_chance_allows() -> None:
    best = Best()
    values = (-0.7, -0.9, -0.82, -0.79, -0.81, -0.9)
    kept = [best.is_improved_by(step, value, 1.0, tolerance=0.1) for step, value in enumerate(values)]
    assert kept == [True, True, True, False, True, True]
    assert best == Best(step=5, value=-0.9, loss=1.0, num_evaluations_without_improvement=4)


def test_a_run_goes_on_while_accuracy_or_loss_still_improves() -> None:
    best, counts = Best(), []
    for step, (accuracy, loss) in enumerate([(0.2, 3.0), (0.1, 2.5), (0.2, 2.0), (0.2, 2.1), (0.3, 2.2), (0.3, 2.3)]):
        best.is_improved_by(step, -accuracy, loss, tolerance=0.15)
        counts.append(best.num_evaluations_without_improvement)
    assert counts == [0, 0, 0, 1, 0, 1]


def test_equal_values_are_no_improvement_without_tolerance() -> None:
    best = Best()
    assert [best.is_improved_by(step, value, value) for step, value in enumerate((2.0, 2.0, 1.9))] == [
        True,
        False,
        True,
    ]
