"""Training: what it writes, resuming to the bit, stopping, and what it refuses."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ASSETS, REPOSITORY, review_rows, write_csv
from killing import killed
from running import launched, log, trained, worsen_every_evaluation
from sealing import rewrite

import ptuning
from ptuning.cli import main as cli
from ptuning.config.run import RunConfig
from ptuning.errors import DataError, PromptError, TrainingError
from ptuning.model.causal import CausalBackbone
from ptuning.prompts.soft_prompt import SoftPrompt
from ptuning.training import graphs, validation
from ptuning.training import run as trainer
from ptuning.training.inputs import Inputs
from ptuning.training.interrupts import Interrupted
from ptuning.training.loop import Loop, StepRecord
from ptuning.training.run_directory import RunDirectory


def losses(directory: Path) -> list[tuple]:
    """The log without what depends on the clock."""
    return [(r["step"], r.get("loss"), r.get("grad_norm"), r.get("eval_loss")) for r in log(directory)]


def test_training_learns_the_task_and_writes_the_run(run_config: Path) -> None:
    options = ("--train.max_steps=100", "--train.eval_steps=25", "--train.logging_steps=25")
    result = trained(run_config, *options)
    run = result.directory.parent
    assert {path.name for path in run.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "curves.png",
        "predictions.jsonl",
        "metrics.json",
        "metrics.jsonl",
        "prompt",
    }
    results = json.loads((run / "metrics.json").read_text())["results"]
    assert results["soft prompt"]["accuracy"] > 0.9 > results["the same words, no soft prompt"]["accuracy"]
    assert results["soft prompt"]["num_rows"] == 24
    assert RunConfig.from_yaml(run / "config.yaml") == RunConfig.from_yaml(run_config, options)
    steps = [record for record in log(run) if "learning_rate" in record]
    assert [record["step"] for record in steps] == [25, 50, 75, 100]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert all(record["tokens_per_second"] > 0 and record["peak_memory_bytes"] > 1e6 for record in steps)
    assert [record["step"] for record in log(run) if "eval_loss" in record] == [0, 25, 50, 75, 100]
    loaded = ptuning.SoftPrompt.load(result.directory)
    assert torch.equal(loaded.embeddings_PH, result.prompt.embeddings_PH)
    assert "soft prompt | 24" in (result.directory / "README.md").read_text()


def test_base_weights_are_unchanged_and_their_hash_recorded(run_config: Path, model_directory: Path) -> None:
    before = ptuning.Backbone.from_pretrained(model_directory, "float32", "cpu").weights_sha256()
    assert trained(run_config).metrics["base_weights_sha256"] == before


@pytest.mark.parametrize(("point", "number"), [("step", 5), ("save", 6), ("step", 2), ("evaluate", 4)])
def test_run_killed_and_resumed_equals_uninterrupted_run_to_the_bit(
    run_config: Path, tmp_path: Path, point: str, number: int
) -> None:
    whole = trained(run_config, f"--train.output_dir={tmp_path}/whole")
    arguments = ("--config", str(run_config))
    assert killed(point, number, *arguments) == -signal.SIGKILL
    assert not (tmp_path / "run" / "prompt").exists()
    resumed = trained(run_config, resume=True)
    assert torch.equal(resumed.prompt.embeddings_PH, whole.prompt.embeddings_PH)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "best.pt",
        "last.pt",
        "prompts",
    ]
    snapshots = [RunDirectory(tmp_path / name).snapshots() for name in ("run", "whole")]
    assert list(snapshots[0]) == list(snapshots[1])
    assert all(torch.equal(snapshots[0][step], snapshots[1][step]) for step in snapshots[1])


@pytest.mark.real_model
def test_real_run_killed_at_three_points_and_resumed_equals_uninterrupted_run_to_the_bit(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"""
model: {{name_or_path: {ASSETS}/smollm2-135m-instruct, dtype: float32, device: cpu}}
data:
  train: {ASSETS}/movie_reviews/train.csv
  validation_split: 0
  template: "{{prompt:20}}Review: {{text}}\\nSentiment:"
  verbalizer: {{negative: " negative", positive: " positive"}}
train: {{output_dir: {tmp_path}/run, max_steps: 6, per_device_train_batch_size: 4, save_steps: 2, logging_steps: 1}}
""")
    if not ASSETS.exists():
        pytest.skip("run scripts/fetch_assets.py first")
    whole = trained(config, f"--train.output_dir={tmp_path}/whole")
    for point, number in (("step", 1), ("save", 4), ("step", 5)):
        assert killed(point, number, "--config", str(config), "--resume") == -signal.SIGKILL
    resumed = trained(config, resume=True)
    assert torch.equal(resumed.prompt.embeddings_PH, whole.prompt.embeddings_PH)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.parametrize("encoder", ["embedding", "mlp", "lstm", "residual"])
def test_every_encoder_resumes_to_the_bit(run_config: Path, tmp_path: Path, encoder: str) -> None:
    option = f"--prompt.encoder={encoder}"
    whole = trained(run_config, option, f"--train.output_dir={tmp_path}/whole")
    assert killed("step", 7, "--config", str(run_config), option) == -signal.SIGKILL
    resumed = trained(run_config, option, resume=True)
    assert torch.equal(resumed.prompt.embeddings_PH, whole.prompt.embeddings_PH)


def test_ctrl_c_writes_a_checkpoint_and_exits_130(run_config: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ptuning.cli.main",
        "train",
        "--config",
        str(run_config),
        "--train.max_steps=100000",
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    while not (tmp_path / "run" / "checkpoints" / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].endswith(f"go on with ptuning train --config {tmp_path}/run/config.yaml --resume")
    assert "Traceback" not in errors
    state = RunDirectory(tmp_path / "run").load_checkpoint("last")
    assert state is not None
    assert f"interrupted at step {state['progress']['step']}" in errors


def test_second_run_in_a_live_runs_directory_is_refused_and_touches_nothing(
    run_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        sys.executable,
        "-m",
        "ptuning.cli.main",
        "train",
        "--config",
        str(run_config),
        "--train.save_steps=1000",
    ]
    first = subprocess.Popen([*command, "--train.max_steps=900"], stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert first.poll() is None
            time.sleep(0.02)
        first.send_signal(signal.SIGSTOP)
        files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
        assert {path.name for path in files} >= {"config.yaml", "metrics.jsonl", "run.lock"}
        before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
        asked = ["train", "--config", str(run_config), "--train.seed=1"]
        for options in ([], ["--resume"]):
            with monkeypatch.context() as patch:
                patch.delattr(Inputs, "load")  # it is refused at once, before a model is loaded
                assert cli.main([*asked, *options]) == 2
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1
            assert f"run is in use by process {first.pid} on " in lines[0]
        assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
        assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == files
    finally:
        first.kill()
        first.wait()
    assert (tmp_path / "run" / "run.lock").exists()
    assert cli.main(asked) == 0  # there was no checkpoint: nothing is lost
    assert not (tmp_path / "run" / "run.lock").exists()


def test_run_that_comes_and_goes_while_another_loads_is_not_overwritten(run_config: Path, tmp_path: Path) -> None:
    config = RunConfig.from_yaml(run_config, ["--train.seed=1"])
    second = trainer.Trainer(config, RunDirectory(config.train.output_dir))
    first = trained(run_config)
    with pytest.raises(TrainingError, match=r"output_dir .*/run already holds a run"):
        second.train()
    assert torch.equal(ptuning.SoftPrompt.load(first.directory).embeddings_PH, first.prompt.embeddings_PH)
    assert not (tmp_path / "run" / "run.lock").exists()


def test_interrupted_in_process_keeps_the_old_signal_handler(run_config: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    step = Loop._step

    def interrupting_step(self: Loop) -> StepRecord:
        os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step", interrupting_step)
        with pytest.raises(Interrupted, match="interrupted at step 1"):
            trained(run_config)
    assert signal.getsignal(signal.SIGINT) is handler
    assert trained(run_config, resume=True).prompt.training["steps"] == 12


def spoil_losses(monkeypatch: pytest.MonkeyPatch, factor: Callable[[], float]) -> None:
    """Multiplies the loss of every step, and its gradient."""
    run = graphs.loss_and_gradient

    def spoiled(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        (loss, gradient), by = run(*arguments), factor()
        return loss * by, gradient * by

    monkeypatch.setattr(graphs, "loss_and_gradient", spoiled)


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    spoil_losses(monkeypatch, lambda: math.nan if next(calls) == 7 else 1)
    with pytest.raises(
        TrainingError, match=r"loss nan at step 8; .* keeps its checkpoint of step 6; expected a finite number\. Start"
    ):
        trained(run_config)
    state = RunDirectory(tmp_path / "run").load_checkpoint("last")
    assert state is not None
    assert state["progress"]["step"] == 6
    assert all(torch.isfinite(tensor).all() for tensor in state["encoder"].values())


def test_loss_that_is_not_finite_before_the_first_checkpoint_says_so(
    run_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_losses(monkeypatch, lambda: math.inf)
    with pytest.raises(TrainingError, match=r"loss inf at step 1; .* keeps no checkpoint yet"):
        trained(run_config)


def test_accumulated_batches_make_the_same_steps_as_one_large_batch(run_config: Path, tmp_path: Path) -> None:
    large = trained(run_config, "--train.max_steps=1", f"--train.output_dir={tmp_path}/large")
    settings = RunConfig.from_yaml(run_config, ["--train.max_steps=1", "--train.gradient_accumulation_steps=2"])
    small = trainer.Trainer(settings, RunDirectory(settings.train.output_dir))
    rows = small.steps.stream[0]
    small.steps.stream = [rows[:3], rows[3:]]  # type: ignore[assignment]
    result = small.train()
    torch.testing.assert_close(result.prompt.embeddings_PH, large.prompt.embeddings_PH, rtol=0, atol=1e-6)


def test_splice_and_shared_prefix_train_alike(run_config: Path, tmp_path: Path) -> None:
    runs = [
        trained(run_config, "--train.max_steps=3", f"--train.forward={path}", f"--train.output_dir={tmp_path}/{path}")
        for path in ("splice", "shared_prefix")
    ]
    torch.testing.assert_close(runs[0].prompt.embeddings_PH, runs[1].prompt.embeddings_PH, rtol=0, atol=1e-4)


def test_early_stopping_ends_after_evaluations_without_improvement(
    run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worsen_every_evaluation(monkeypatch)
    options = ("--train.eval_steps=2", "--train.early_stopping_patience=3", "--train.metric_for_best_model=loss")
    result = trained(run_config, "--train.max_steps=100", *options)
    assert result.prompt.training["steps"] == 6
    assert result.prompt.training["best_step"] == 0
    assert RunDirectory(tmp_path / "run").load_checkpoint("last")["progress"]["step"] == 6  # type: ignore[index]
    assert "step 6: stopped early; the best step is 0, none better in 3 evaluations" in capsys.readouterr().err


def test_interrupt_in_the_last_validation_is_heeded(run_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validate = trainer.Trainer._validate

    def interrupting_validate(self: trainer.Trainer, bar: object) -> None:
        if self.loop.progress.step == 12:
            os.kill(os.getpid(), signal.SIGINT)
        validate(self, bar)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_validate", interrupting_validate)
        with pytest.raises(Interrupted, match="interrupted at step 12"):
            trained(run_config)
    assert trained(run_config, resume=True).prompt.training["steps"] == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_while_the_prompt_is_measured_is_told_and_loses_no_step(
    run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    finish = trainer.Trainer._finish

    def interrupting_finish(self: trainer.Trainer) -> Any:
        os.kill(os.getpid(), number)
        return finish(self)

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    told = rf"all its steps are made: .* go on with ptuning train --config {tmp_path}/run/config.yaml --resume"
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_finish", interrupting_finish)
        with pytest.raises(Interrupted, match=told):
            trained(run_config)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    with pytest.raises(
        PromptError, match=r"run, a run that has not ended; .* else finish it: ptuning train --config .*"
    ):
        SoftPrompt.load(tmp_path / "run")
    assert trained(run_config, resume=True).prompt.training["steps"] == 12


def test_prompt_and_its_files_can_be_read_by_others(run_config: Path) -> None:
    directory = trained(run_config, "--train.max_steps=1").directory
    assert {file.stat().st_mode & 0o777 for file in directory.iterdir()} == {0o644}


def test_killed_write_of_a_prompt_leaves_nothing_after_the_resume(run_config: Path, tmp_path: Path) -> None:
    trained(run_config, "--train.max_steps=1")
    (tmp_path / "run" / "metrics.json").unlink()
    (tmp_path / "run" / ".prompt.abc").mkdir()
    (tmp_path / "run" / ".metrics.json.abc").touch()
    trained(run_config, "--train.max_steps=1", resume=True)
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_finished_run_is_only_read_on_resume(run_config: Path) -> None:
    first = trained(run_config)
    written = (first.directory / "ptuning.json").stat().st_mtime_ns
    again = trained(run_config, resume=True)
    assert (first.directory / "ptuning.json").stat().st_mtime_ns == written
    assert torch.equal(again.prompt.embeddings_PH, first.prompt.embeddings_PH)
    assert again.metrics == first.metrics


def test_finished_run_without_its_prompt_saves_it_again(run_config: Path) -> None:
    first = trained(run_config)
    shutil.rmtree(first.directory)
    again = trained(run_config, resume=True)
    assert torch.equal(ptuning.SoftPrompt.load(again.directory).embeddings_PH, first.prompt.embeddings_PH)


def test_finished_run_with_another_prompt_in_its_place_is_told(run_config: Path) -> None:
    first = trained(run_config)
    dataclasses.replace(first.prompt, training={}).save(first.directory)
    with pytest.raises(TrainingError, match=r"run/prompt holds a prompt of another run; .* Move it away and resume"):
        trained(run_config, resume=True)


def test_other_seed_gives_another_prompt_and_the_same_seed_the_same(run_config: Path, tmp_path: Path) -> None:
    prompts = [
        trained(run_config, f"--train.seed={seed}", f"--train.output_dir={tmp_path}/{i}").prompt.embeddings_PH
        for i, seed in enumerate((0, 0, 1))
    ]
    assert torch.equal(prompts[0], prompts[1])
    assert not torch.equal(prompts[0], prompts[2])


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--prompt.init=labels", [" positive", " negative"]),
        ("--prompt.init=auto", [" positive", " negative"]),
        ("--prompt.init=text", [" good", " film"]),
    ],
)
def test_initial_tokens_are_recorded(run_config: Path, option: str, expected: list[str]) -> None:
    text = ["--prompt.init_text= good film"] if option.endswith("text") else []
    result = trained(run_config, option, *text, "--train.max_steps=1")
    tokenizer = ptuning.Backbone.from_pretrained(result.prompt.base_name or "", device="cpu").tokenizer
    tokens = [tokenizer.decode([i]) for i in result.prompt.init["token_ids"]]
    assert set(expected) <= set(tokens)


def test_new_run_starts_from_a_saved_prompt(run_config: Path, tmp_path: Path) -> None:
    first = trained(run_config)
    settings = RunConfig.from_yaml(
        run_config,
        ["--prompt.init=prompt", f"--prompt.init_prompt={first.directory}", f"--train.output_dir={tmp_path}/second"],
    )
    second = trainer.Trainer(settings, RunDirectory(settings.train.output_dir))
    assert torch.equal(second.encoder.base_PH, first.prompt.embeddings_PH)


def test_training_for_generation_learns_answers_and_their_end(run_config: Path, tmp_path: Path) -> None:
    rows = [{"country": name, "capital": f" {answer}"} for name, answer in (("good", "film"), ("bad", "plot"))] * 16
    write_csv(tmp_path / "capitals.csv", rows)
    result = trained(
        run_config,
        *(f"--data.{split}={tmp_path}/capitals.csv" for split in ("train", "validation", "test")),
        "--data.template={prompt:3}{country}{prompt:3} is the capital of",
        *("--data.answer={capital}", "--data.verbalizer=null"),
        *("--train.max_steps=80", "--train.learning_rate=0.05", "--train.eval_steps=40"),
    )
    assert not (result.directory / "adapter_config.json").exists()
    assert result.metrics["results"]["soft prompt"]["accuracy"] == 1.0
    base = result.prompt.base_name or ""
    lm = ptuning.PromptedLM.from_pretrained(base, {"capital": result.directory}, device="cpu")
    assert lm.generate([{"country": "good"}, {"country": "bad"}], max_new_tokens=8) == [" film", " plot"]


def test_rows_that_were_cut_are_counted(run_config: Path) -> None:
    result = trained(run_config, "--data.max_length=22", "--train.max_steps=1")
    assert result.prompt.training["rows_cut"] > 0
    assert result.metrics["results"]["soft prompt"]["num_cut"] > 0


def test_tensorboard_gets_the_metrics(run_config: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(run_config, "--train.report_to=tensorboard")
    events = EventAccumulator(str(next((tmp_path / "run").rglob("events.out.*")).parent))
    events.Reload()
    assert {"loss", "learning_rate", "grad_norm", "eval_loss"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_tracker_that_is_not_installed_is_one_clear_error(
    run_config: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=rf"{tracker}, which is not installed; .* pip install {tracker}"):
        trained(run_config, f"--train.report_to={tracker}")


def test_epochs_decide_the_steps_where_max_steps_does_not(run_config: Path) -> None:
    settings = RunConfig.from_yaml(run_config, ["--train.max_steps=null", "--train.num_train_epochs=1.5"])
    assert (
        trainer.Trainer(settings, RunDirectory(settings.train.output_dir)).loop.settings.max_steps == 12
    )  # 1.5 x 64 rows / 8


def test_scripts_train_is_ptuning_train(run_config: Path, tmp_path: Path) -> None:
    script = REPOSITORY / "scripts" / "train.py"
    command = [sys.executable, str(script), "--config", str(run_config), "--train.max_steps=2"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"\| soft prompt +\| 24 +\|", result.stdout)
    table = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == len(set(map(len, table))) == 1  # the columns stand in line
    assert (tmp_path / "run" / "prompt" / "adapter_config.json").exists()


def log_probs(run: Path) -> dict[str, float]:
    """Row -> log-probability of its answer, as predicted at the end."""
    records = [json.loads(line) for line in (run / "predictions.jsonl").read_text().split("\n") if line]
    return {record["row"]: record["log_prob"] for record in records}


def test_two_processes_make_the_same_steps_as_one(run_config: Path, tmp_path: Path) -> None:
    options = ["--train.per_device_train_batch_size=4", "--train.max_steps=4"]
    one = trained(run_config, *options, "--train.gradient_accumulation_steps=2", f"--train.output_dir={tmp_path}/one")
    result = launched("--config", str(run_config), *options, f"--train.output_dir={tmp_path}/two")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("| soft prompt ") == 1
    two = ptuning.SoftPrompt.load(tmp_path / "two" / "prompt")
    torch.testing.assert_close(two.embeddings_PH, one.prompt.embeddings_PH, rtol=0, atol=1e-5)
    assert two.results["soft prompt"]["num_rows"] == one.prompt.results["soft prompt"]["num_rows"] == 24
    for key in ("loss", "label_log_loss", "macro_f1", "accuracy"):
        assert two.results["soft prompt"][key] == pytest.approx(one.prompt.results["soft prompt"][key], abs=1e-4)
    assert len(set(log_probs(tmp_path / "one").values())) == 24
    assert log_probs(tmp_path / "two") == pytest.approx(log_probs(tmp_path / "one"), abs=1e-4)
    compared = json.loads((tmp_path / "two" / "metrics.json").read_text())["compared"]
    assert compared == one.metrics["compared"]
    assert compared["num_rows"] == 24


def test_process_without_rows_takes_part_in_every_sum(run_config: Path, tmp_path: Path) -> None:
    for split, count in (("train", 3), ("validation", 1), ("test", 1)):
        write_csv(tmp_path / f"{split}.csv", review_rows(count))
    options = ["--train.per_device_train_batch_size=2", "--train.max_steps=4", "--train.eval_steps=2"]
    one = trained(run_config, *options, "--train.gradient_accumulation_steps=2", f"--train.output_dir={tmp_path}/one")
    result = launched("--config", str(run_config), *options, f"--train.output_dir={tmp_path}/two")
    assert result.returncode == 0, result.stderr
    two = ptuning.SoftPrompt.load(tmp_path / "two" / "prompt")
    torch.testing.assert_close(two.embeddings_PH, one.prompt.embeddings_PH, rtol=0, atol=1e-5)
    assert [record["eval_num_rows"] for record in log(tmp_path / "two") if "eval_loss" in record] == [1, 1, 1]
    assert two.results["soft prompt"]["num_rows"] == 1
    for key in ("loss", "label_log_loss", "macro_f1", "accuracy"):
        assert two.results["soft prompt"][key] == pytest.approx(one.prompt.results["soft prompt"][key], abs=1e-4)
    assert log_probs(tmp_path / "two") == pytest.approx(log_probs(tmp_path / "one"), abs=1e-4)


def test_all_processes_end_where_another_run_holds_the_directory(run_config: Path, tmp_path: Path) -> None:
    lock = RunDirectory(tmp_path / "run").lock
    assert lock.acquire()
    result = launched("--config", str(run_config))
    lock.release()
    assert result.returncode != 0
    assert result.stderr.count(f"ptuning: output_dir {tmp_path}/run is in use by process {os.getpid()} on ") == 2
    assert list((tmp_path / "run").iterdir()) == []


def test_all_processes_stop_where_one_of_them_is_interrupted(
    run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.from_yaml(run_config, ["--train.eval_steps=100"])
    interrupted = trainer.Trainer(config, RunDirectory(config.train.output_dir))
    steps = interrupted.loop.progress
    monkeypatch.setattr(trainer, "sum_over_processes", lambda _, value: value + (steps.step == 5))
    with pytest.raises(Interrupted, match="interrupted at step 5"):  # by another process: none came to this one
        interrupted.train()
    assert RunDirectory(tmp_path / "run").load_checkpoint("last")["progress"]["step"] == 5  # type: ignore[index]


def test_rows_that_were_cut_are_told_before_training(run_config: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(run_config, "--data.max_length=22", "--train.max_steps=1")
    assert "train: 14 of 64 rows lost the end of their text" in caplog.text


def test_checkpointed_run_makes_the_same_steps(run_config: Path, tmp_path: Path) -> None:
    plain = trained(run_config)
    saving = trained(run_config, "--train.gradient_checkpointing=true", f"--train.output_dir={tmp_path}/saving")
    assert (saving.prompt.embeddings_PH - plain.prompt.embeddings_PH).abs().max() < 1e-4
    for one, other in zip(log(tmp_path / "saving"), log(tmp_path / "run"), strict=True):
        assert one.get("loss") == pytest.approx(other.get("loss"), abs=1e-4)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_run_on_a_quantized_base_learns_and_its_prompt_fits_the_whole_base(
    run_config: Path, model_directory: Path, kind: str
) -> None:
    result = trained(run_config, f"--model.quantization={kind}", "--train.max_steps=30")
    baseline, tuned = result.metrics["results"].values()
    assert tuned["loss"] < baseline["loss"] - 1
    for quantization in ("none", kind):
        lm = ptuning.PromptedLM.from_pretrained(model_directory, {"p": result.directory}, quantization=quantization)
        assert len(lm.classify([{"text": "the film was good"}])) == 1


@pytest.mark.parametrize("step", [2, 7, 12])
def test_run_whose_directory_is_moved_ends_and_goes_on_there(run_config: Path, tmp_path: Path, step: int) -> None:
    whole = trained(run_config, f"--train.output_dir={tmp_path}/whole")

    def move(record: Any) -> None:
        if record.step == step:
            (tmp_path / "run").rename(tmp_path / "moved")

    with pytest.raises(
        TrainingError, match=r"run, removed or moved while the run was at work; .*go on with --resume and"
    ):
        ptuning.train(RunConfig.from_yaml(run_config), on_step=move)
    assert not (tmp_path / "run").exists()
    again = trained(run_config, f"--train.output_dir={tmp_path}/moved", resume=True)
    assert torch.equal(again.prompt.embeddings_PH, whole.prompt.embeddings_PH)


def test_run_from_before_a_setting_came_goes_on(run_config: Path, tmp_path: Path) -> None:
    trained(run_config)
    saved = tmp_path / "run" / "config.yaml"
    new = ("gradient_checkpointing", "quantization")
    lines = saved.read_text().splitlines(keepends=True)
    rewrite(saved, "".join(line for line in lines if not line.strip().startswith(new)))
    assert trained(run_config, resume=True).prompt.training["steps"] == 12
    with pytest.raises(TrainingError, match=r"with other settings .model.quantization: 'int8' instead of 'none'"):
        trained(run_config, "--model.quantization=int8", resume=True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], 6), (["--train.gradient_accumulation_steps=2"], 12), (["--train.max_eval_samples=9"], 9)],
)
def test_evaluations_read_a_tenth_of_the_rows_that_are_trained_on_between_them(
    options: list[str], expected: int, run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_FEWEST_EVALUATED", 1)
    trained(run_config, "--train.max_steps=8", "--train.eval_steps=8", *options)  # 64 rows, or twice as many
    assert [record["eval_num_rows"] for record in log(tmp_path / "run") if "eval_loss" in record] == [expected] * 2


def test_few_tokens_at_once_make_the_same_steps(
    run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(run_config, "--train.max_steps=3", f"--train.output_dir={tmp_path}/whole")
    sizes, run = [], CausalBackbone.run
    monkeypatch.setattr(
        CausalBackbone, "run", lambda self, **i: sizes.append(i["inputs_embeds"].shape[:2].numel()) or run(self, **i)
    )
    parts = trained(run_config, "--train.max_steps=3", "--train.max_batch_tokens=60")
    assert max(sizes) <= 60
    torch.testing.assert_close(parts.prompt.embeddings_PH, whole.prompt.embeddings_PH, rtol=0, atol=1e-5)
    with pytest.raises(
        DataError, match=r"csv.* of \d+ tokens, .* expected at most 5, the tokens that a batch may have"
    ):
        trained(run_config, "--train.max_batch_tokens=5", f"--train.output_dir={tmp_path}/none")
    assert not (tmp_path / "none").exists()
