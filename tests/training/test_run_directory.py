"""A run's directory: what a resumed run must have in common with the one that was killed, and what it need not."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import review_rows, write_csv
from killing import killed

import ptuning
from ptuning.config.run import RunConfig
from ptuning.errors import TrainingError
from ptuning.training.run import train


def trained(config: Path, *overrides: str, resume: bool = False) -> ptuning.SoftPrompt:
    return train(RunConfig.from_yaml(config, overrides), resume).prompt


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_moved_run_with_moved_files_resumes_to_the_bit(
    run_config: Path, tmp_path: Path, model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = trained(run_config, f"--train.output_dir={tmp_path}/first", "--train.max_steps=2")
    directory = start.save(tmp_path / "start")
    begins = ("--prompt.init=prompt", f"--prompt.init_prompt={directory}")
    whole = trained(run_config, *begins, f"--train.output_dir={tmp_path}/whole")
    assert killed("step", 7, "--config", str(run_config), *begins) == -signal.SIGKILL
    (tmp_path / "run").rename(tmp_path / "moved")
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").rename(tmp_path / f"its {split}.csv")
    shutil.copytree(model_directory, tmp_path / "its model")
    directory.rename(tmp_path / "its start")
    monkeypatch.chdir(tmp_path)
    moved = (
        "--train.output_dir=moved",
        "--train.report_to=tensorboard",
        "--data.train=its train.csv",
        f"--data.validation={tmp_path}/its validation.csv",
        "--data.test=its test.csv",
        "--model.name_or_path=its model",
        "--prompt.init=prompt",
        "--prompt.init_prompt=its start",
    )
    resumed = trained(run_config, *moved, resume=True)
    assert torch.equal(resumed.embeddings_PH, whole.embeddings_PH)
    assert resumed.training["steps"] == 12
    assert RunConfig.from_yaml(tmp_path / "moved" / "config.yaml").train.output_dir == "moved"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_other_rows_are_refused_and_nothing_is_touched(run_config: Path, tmp_path: Path, split: str) -> None:
    assert killed("step", 7, "--config", str(run_config)) == -signal.SIGKILL
    (tmp_path / "run" / "run.lock").unlink()
    before = contents(tmp_path / "run")
    write_csv(tmp_path / "others.csv", review_rows(15))
    what = {"train": "training rows", "validation": "validation rows"}[split]
    with pytest.raises(TrainingError, match=f"--resume of .*/run with other {what}; expected what the run was started"):
        trained(run_config, f"--data.{split}={tmp_path}/others.csv", resume=True)
    assert contents(tmp_path / "run") == before


def test_validation_rows_cannot_be_left_out_on_resume(run_config: Path) -> None:
    assert killed("step", 7, "--config", str(run_config)) == -signal.SIGKILL
    with pytest.raises(TrainingError, match=r"other settings \(data.validation: None instead of '.*validation.csv'\)"):
        trained(run_config, "--data.validation=null", resume=True)


def test_test_rows_decide_no_step(run_config: Path, tmp_path: Path) -> None:
    assert killed("step", 7, "--config", str(run_config)) == -signal.SIGKILL
    write_csv(tmp_path / "others.csv", review_rows(10))
    resumed = trained(run_config, f"--data.test={tmp_path}/others.csv", resume=True)
    assert resumed.results["soft prompt"]["num_rows"] == 10


def test_other_initial_prompt_is_refused(run_config: Path, tmp_path: Path) -> None:
    start = trained(run_config, f"--train.output_dir={tmp_path}/first", "--train.max_steps=2")
    begins = ("--prompt.init=prompt", f"--prompt.init_prompt={tmp_path}/first/prompt")
    assert killed("step", 7, "--config", str(run_config), *begins) == -signal.SIGKILL
    ptuning.SoftPrompt(start.embeddings_PH * 2).save(tmp_path / "other")
    with pytest.raises(TrainingError, match=r"--resume of .*/run with other initial prompt; expected"):
        trained(run_config, "--prompt.init=prompt", f"--prompt.init_prompt={tmp_path}/other", resume=True)


def test_checkpoint_without_a_digest_of_the_validation_rows_resumes(run_config: Path, tmp_path: Path) -> None:
    whole = trained(run_config, f"--train.output_dir={tmp_path}/whole")
    assert killed("step", 7, "--config", str(run_config)) == -signal.SIGKILL
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    del state["made_with"]["validation rows"]
    torch.save(state, path)
    assert torch.equal(trained(run_config, resume=True).embeddings_PH, whole.embeddings_PH)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--train.learning_rate=0.02", r"train.learning_rate: 0.02 instead of 0.01"),
        ("--train.per_device_train_batch_size=4", r"train.per_device_train_batch_size: 4 instead of 8"),
        ("--data.max_length=100", r"data.max_length: 100 instead of 512"),
    ],
)
def test_settings_that_decide_steps_are_refused(run_config: Path, option: str, told: str) -> None:
    assert killed("step", 7, "--config", str(run_config)) == -signal.SIGKILL
    with pytest.raises(TrainingError, match=rf"other settings \({told}\); .* Set them back, or start a new run"):
        trained(run_config, option, resume=True)


@pytest.mark.parametrize(
    ("option", "told"),
    [("--train.max_steps=24", "train.max_steps: 24 instead of 12"), ("--train.num_train_epochs=5", "train.num_train")],
)
def test_more_steps_are_refused_with_the_way_to_train_further(
    run_config: Path, tmp_path: Path, option: str, told: str
) -> None:
    first = trained(run_config)
    with pytest.raises(TrainingError, match=rf"{told}.* prompt.init: prompt and prompt.init_prompt: .*/run/prompt\."):
        trained(run_config, option, resume=True)
    further = (
        "--prompt.init=prompt",
        f"--prompt.init_prompt={tmp_path}/run/prompt",
        f"--train.output_dir={tmp_path}/b",
    )
    second = trained(run_config, option, *further)
    assert second.results["soft prompt"]["loss"] < first.results["soft prompt"]["loss"]


def test_finished_run_says_that_other_files_are_not_read(
    run_config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = trained(run_config)
    again = trained(run_config, resume=True)
    assert "only read" not in caplog.text
    again = trained(run_config, f"--data.train={tmp_path}/none.csv", resume=True)
    assert torch.equal(again.embeddings_PH, first.embeddings_PH)
    assert "run is finished and is only read, whatever is in data.train: " in caplog.text


def test_lock_left_by_a_killed_process_is_no_run(run_config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").write_text("process 1 on a machine that lost power\n")
    assert trained(run_config, "--train.max_steps=1").training["steps"] == 1
    assert not (tmp_path / "run" / "run.lock").exists()
