"""What keeps a run from ending worse than no prompt without a word: rows set aside, baselines, a final comparison."""

import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import review_rows, write_csv
from running import log, trained, worsen_every_evaluation
from sealing import rewrite

from ptuning.cli import main as cli
from ptuning.config.run import RunConfig
from ptuning.errors import DataError, TrainingError
from ptuning.evaluation.comparison import Comparison
from ptuning.evaluation.metrics import Metrics
from ptuning.training import curves, evaluator
from ptuning.training.baseline import Baseline
from ptuning.training.curves import draw_curves
from ptuning.training.interrupts import Interrupted
from ptuning.training.loop import Loop, StepRecord
from ptuning.training.outcome import Rate, warning
from ptuning.training.run import Trainer
from ptuning.training.run_directory import RunDirectory


def interrupted(config: Path, step: int, *options: str) -> None:
    """Trains until a step at which Ctrl-C comes."""
    make_step = Loop._step

    def interrupting(self: Loop) -> StepRecord:
        if self.progress.step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return make_step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step", interrupting)
        with pytest.raises(Interrupted, match=f"interrupted at step {step}"):
            trained(config, *options)


def evaluations(directory: Path) -> list[dict]:
    return [record for record in log(directory) if "eval_loss" in record]


def test_rows_are_set_aside_and_the_run_resumes_to_the_bit(
    run_config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--data.validation=null", "--data.test=null")
    whole = trained(run_config, *options, f"--train.output_dir={tmp_path}/whole")
    told = "13 of 64 training rows are set aside as validation rows (a share of each label, by train.seed); "
    told += "data.validation names others, data.validation_split another share (0: none); 13 rows say little, so give "
    assert f"{told}more if you can" in caplog.text
    interrupted(run_config, 5, *options)
    capsys.readouterr()
    resumed = trained(run_config, *options, resume=True)
    assert "going on from step 5 of 12\n" in capsys.readouterr().err
    assert torch.equal(resumed.prompt.embeddings_PH, whole.prompt.embeddings_PH)
    assert evaluations(tmp_path / "run") == evaluations(tmp_path / "whole")
    assert [each["eval_num_rows"] for each in evaluations(tmp_path / "run")] == [13] * 4
    assert (resumed.prompt.training["rows"], resumed.prompt.training["validation_rows"]) == (51, 13)
    assert resumed.prompt.training["data"] == {"train": f"{tmp_path}/train.csv"}
    assert resumed.metrics["split"] == "validation"
    with pytest.raises(TrainingError, match=r"other settings .data.validation_split: 0.5 instead of 0.2"):
        trained(run_config, *options, "--data.validation_split=0.5", resume=True)


@pytest.mark.parametrize("option", ["--train.early_stopping_patience=2", "--train.metric_for_best_model=accuracy"])
def test_few_rows_are_all_trained_on_unless_a_setting_needs_others(
    run_config: Path, tmp_path: Path, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_csv(tmp_path / "train.csv", review_rows(9))
    few = ("--data.validation=null", "--train.max_steps=1")
    with pytest.raises(
        DataError, match=r"with 9 training rows, too few to set validation rows aside; .*data.validatio"
    ):
        trained(run_config, *few, option)
    assert trained(run_config, *few).prompt.training["rows"] == 9
    assert "no validation rows: 9 training rows are too few to set any aside" in caplog.text


def test_untrained_prompt_and_bare_words_are_measured_once_and_shown_beside_every_validation(
    run_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(run_config, 6)
    first = log(tmp_path / "run")[0]
    assert first["step"] == 0
    assert {"eval_loss", "eval_accuracy", "baseline_loss", "baseline_accuracy"} <= set(first)
    beside = f"; without the prompt {first['baseline_accuracy']:.3f}"
    own = f"accuracy {first['eval_accuracy']:.3f} "
    lines = capsys.readouterr().err
    assert f"step 0: validation of the untrained prompt: {own}" in lines
    result = trained(run_config, resume=True)
    lines = capsys.readouterr().err
    assert f"{beside}, untrained {first['eval_accuracy']:.3f}" in lines[lines.index("step 12: validation accuracy") :]
    assert "step 0" not in lines
    assert [each["step"] for each in evaluations(tmp_path / "run")] == [0, 4, 8, 12]
    bare = result.metrics["results"]["the same words, no soft prompt"]
    on_the_same_rows = trained(run_config, "--data.test=null", f"--train.output_dir={tmp_path}/b").metrics["results"]
    assert on_the_same_rows["the same words, no soft prompt"]["loss"] == pytest.approx(first["baseline_loss"])
    assert bare["loss"] != pytest.approx(first["baseline_loss"])  # the test rows


def test_written_answers_are_shown_with_their_loss() -> None:
    records = [{"step": 0, "eval_loss": 2.0, "eval_accuracy": 0.0, "baseline_loss": 3.0}, {"step": 4, "eval_loss": 1.0}]
    assert str(Baseline.of_log(records, "loss")) == "; without the prompt loss 3.000, untrained loss 2.000"
    assert str(Baseline.of_log(records[1:], "loss")) == ""


@pytest.mark.parametrize("is_resumed", [False, True])
def test_untrained_prompt_is_kept_where_no_step_is_better(
    run_config: Path, monkeypatch: pytest.MonkeyPatch, is_resumed: bool
) -> None:
    worsen_every_evaluation(monkeypatch)
    options = ("--prompt.encoder=lstm", "--train.metric_for_best_model=loss")
    config = RunConfig.from_yaml(run_config, options)
    start_PH = Trainer(config, RunDirectory(config.train.output_dir)).encoder.base_PH.detach().clone()
    if is_resumed:
        interrupted(run_config, 6, *options)
    result = trained(run_config, *options, resume=is_resumed)
    assert torch.equal(result.prompt.embeddings_PH, start_PH)
    assert result.prompt.training["best_step"] == 0


def test_run_of_an_earlier_version_goes_on_with_its_defaults(run_config: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(run_config.read_text())
    for section, key in (("data", "validation"), ("train", "eval_steps")):
        del content[section][key]
    run_config.write_text(yaml.safe_dump(content))
    earlier = ("--data.validation_split=0", "--train.eval_steps=100", "--train.early_stopping_patience=null")
    whole = trained(run_config, *earlier, f"--train.output_dir={tmp_path}/whole")
    interrupted(run_config, 4, *earlier)
    saved = tmp_path / "run" / "config.yaml"
    lines = saved.read_text().splitlines(keepends=True)
    rewrite(saved, "".join(line for line in lines if "validation_split" not in line))
    checkpoints = shutil.copytree(tmp_path / "run" / "checkpoints", tmp_path / "copy")
    assert trained(run_config, resume=True).prompt.training["rows"] == 64
    (tmp_path / "run" / "metrics.json").unlink()  # killed again: by now the config names the setting
    shutil.copytree(checkpoints, tmp_path / "run" / "checkpoints", dirs_exist_ok=True)
    again = trained(run_config, resume=True)
    assert torch.equal(again.prompt.embeddings_PH, whole.prompt.embeddings_PH)
    with pytest.raises(TrainingError, match=r"other settings .train.eval_steps: 5 instead of 100"):
        trained(run_config, "--train.eval_steps=5", resume=True)


def test_prompt_that_is_not_shown_to_be_better_is_told_with_a_remedy(
    run_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert cli.main(["train", "--config", str(run_config), "--train.max_steps=1", "--train.learning_rate=1e-6"]) == 0
    compared = json.loads((tmp_path / "run" / "metrics.json").read_text())["compared"]
    told = "the tuned prompt is not shown to be better than the same words without it: accuracy "
    assert compared["warning"].startswith(told)
    assert "Its training rows do not show it either (accuracy " in compared["warning"]
    assert "and 1e-06 is far from it" in compared["warning"]
    assert capsys.readouterr().out.startswith("results on the test rows:\n")
    assert _warnings(caplog) == [compared["warning"]]
    caplog.clear()
    assert cli.main(["train", "--config", str(tmp_path / "run" / "config.yaml"), "--resume"]) == 0
    assert _warnings(caplog) == [compared["warning"]]  # a finished run that is read again tells it too


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.message for each in caplog.records if each.levelno == logging.WARNING]


def test_prompt_that_is_better_is_not_warned_of(run_config: Path, caplog: pytest.LogCaptureFixture) -> None:
    compared = trained(run_config, "--train.max_steps=60", "--train.learning_rate=0.02").metrics["compared"]
    assert compared["is_better"]
    assert compared["p_value"] < 0.05
    assert compared["warning"] is None
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("num_rows", "num_right", "num_fitted", "remedy"),
    [
        (
            20,
            13,
            50,
            "It is above them here, but 20 rows are too few to show it: give more in data.test. Its training rows do",
        ),
        (
            60,
            11,
            50,
            "Its training rows do not show it either (accuracy 0.500 against 0.500 of the words): try a "
            "train.learning_rate above or below 0.097",
        ),
        (
            60,
            13,
            95,
            "may be better here too, but 60 rows are too few to show it: give more in data.test, or try more",
        ),
        (
            20,
            9,
            95,
            "Its training rows show it (accuracy 0.950 against 0.500 of the words) but others do not: give more",
        ),
    ],
)
def test_remedy_fits(num_rows: int, num_right: int, num_fitted: int, remedy: str) -> None:
    comparison = Comparison(True, num_rows, num_right, 10, max(num_right - 10, 0), max(10 - num_right, 0), 0.0, 0.0)
    rate = Rate(peak=0.097, automatic=0.1)
    assert remedy in warning(comparison, Metrics(100, num_fitted, 100, 1.0), Metrics(20, 10, 20, 1.0), rate)


@pytest.mark.parametrize("peak", [50.0, 1e-4])
def test_a_rate_far_from_the_automatic_one_is_named(peak: float) -> None:
    told = f"auto (0.1 here, and {peak:.2g} is far from it)"
    assert Rate(peak, automatic=0.1).other == f"train.learning_rate: {told}"


def test_template_without_words_has_no_baseline(
    run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = evaluator.with_and_without
    monkeypatch.setattr(evaluator, "with_and_without", lambda *a, with_baseline: both(*a, with_baseline=False))
    result = trained(run_config, "--train.max_steps=2")
    assert result.metrics["compared"] is None
    assert "eval_loss" in log(tmp_path / "run")[0]
    assert "baseline_loss" not in log(tmp_path / "run")[0]


def test_evaluations_are_a_tenth_of_the_run_apart_and_five_without_a_better_one_end_it(run_config: Path) -> None:
    config = RunConfig.from_yaml(run_config, ["--train.eval_steps=null", "--train.max_steps=45"])
    for settings, expected in (
        (config, 4),
        (RunConfig.from_yaml(run_config, ["--train.eval_steps=null", "--train.max_steps=3"]), 1),
    ):
        assert Trainer(settings, RunDirectory(settings.train.output_dir)).validator.eval_steps == expected
    validator = Trainer(config, RunDirectory(config.train.output_dir)).validator
    validator.best.num_evaluations_without_improvement = 4
    assert not validator.stops_early
    validator.best.num_evaluations_without_improvement = 5
    assert validator.stops_early


RECORDS = [
    {"step": 0, "eval_loss": 2.0, "eval_accuracy": 0.4, "baseline_loss": 3.0, "baseline_accuracy": 0.5},
    *({"step": step, "loss": 2.0 - step / 10} for step in range(1, 9)),
    {"step": 8, "eval_loss": 1.0, "eval_accuracy": 0.9},
]


def test_curves_are_drawn_from_the_log_without_shared_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **o: drawn.append(self) or save(self, *a, **o))
    had_pyplot = "matplotlib.pyplot" in sys.modules
    assert draw_curves(RECORDS, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot
    shown = [{line.get_label(): list(line.get_ydata()) for line in axes.lines} for axes in drawn[0].axes]
    assert shown == [
        {"training": [2.0 - step / 10 for step in range(1, 9)], "validation": [2.0, 1.0], "without the prompt": [3, 3]},
        {"validation": [0.4, 0.9], "without the prompt": [0.5, 0.5], "untrained": [0.4, 0.4]},
    ]


def test_curves_of_a_log_without_validation_are_drawn(tmp_path: Path) -> None:
    assert draw_curves(RECORDS[1:9], tmp_path / "curves.png")


def test_no_curves_without_matplotlib_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves.importlib.util, "find_spec", lambda name: None)
    assert not draw_curves(RECORDS, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
