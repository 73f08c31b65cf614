"""The command line's front: help, version, how flags and paths may be written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

import ptuning
from ptuning.cli.arguments import with_dashes
from ptuning.cli.main import main
from ptuning.prompts.soft_prompt import SoftPrompt
from ptuning.prompts.storage import prompt_directory


@pytest.mark.parametrize("given", [[], ["help"]])
def test_no_command_shows_help_with_examples(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 0
    out = capsys.readouterr().out
    assert "examples:\n  ptuning init tickets.csv" in out
    assert all(command in out for command in ("train", "evaluate", "predict", "inspect"))


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"ptuning {ptuning.__version__}\n"


def test_the_module_is_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ptuning"], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert result.stdout.startswith("usage: ptuning")


@pytest.mark.parametrize(("given", "seconds"), [({}, "10"), ({"TQDM_MININTERVAL": "3"}, "3")])
def test_a_progress_bar_in_a_log_is_drawn_seldom(given: dict[str, str], seconds: str) -> None:
    script = (
        "from ptuning.cli.main import main; main(['help']); from tqdm.auto import tqdm; print(tqdm([]).mininterval)"
    )
    environment = {**os.environ, **given} if given else {k: v for k, v in os.environ.items() if k[:5] != "TQDM_"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment)
    assert float(result.stdout.split()[-1]) == float(seconds)


def test_flags_may_be_written_with_underscores_and_settings_with_dashes() -> None:
    given = [
        "predict",
        "my_run",
        "--max_new_tokens",
        "a_b",
        "--data=my_file.csv",
        "--train.max-steps=5_0",
        "-- so_so",
        "-h",
    ]
    assert with_dashes(given) == [
        *(
            "predict",
            "my_run",
            "--max-new-tokens",
            "a_b",
            "--data=my_file.csv",
            "--train.max_steps=5_0",
            "-- so_so",
            "-h",
        )
    ]


def test_the_config_is_printed_by_either_spelling(run_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--print_config", "--print-config"):
        assert main(["train", "--config", str(run_config), flag, "--train.max-steps", "7"]) == 0
        assert "max_steps: 7" in capsys.readouterr().out


def test_a_path_that_does_not_exist_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from ptuning.cli.main import main; "
        "print([main(['predict', p, '--data', 'none.csv']) for p in sys.argv[1:]], 'torch' in sys.modules)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "none"), str(tmp_path)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert result.stdout == "[2, 2] False\n"
    first, second = result.stderr.splitlines()
    assert (
        first == f"ptuning: prompt directory {tmp_path}/none does not exist; expected a saved prompt. Check the path."
    )
    assert second.startswith("ptuning: data file none.csv does not exist")


def test_names_that_no_file_can_have_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a" * 5000
    for arguments in (
        ["predict", name, "--input", "a"],
        ["predict", str(tmp_path), "--data", f"{name}.csv"],
        ["init", f"{name}.csv"],
        ["train", "--config", name],
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert len(line) < 700


def test_an_empty_model_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path), "--model", "", "--input", "a"]) == 2
    assert capsys.readouterr().err.startswith("ptuning: --model ''; expected a model's directory, or its name on")


def test_a_runs_directory_is_taken_as_its_prompt(
    run_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(run_config), "--train.max_steps=2"]) == 0
    run = tmp_path / "run"
    assert prompt_directory(run) == prompt_directory(run / "prompt") == run / "prompt"
    assert SoftPrompt.load(run).training == SoftPrompt.load(run / "prompt").training
    shown = []
    for path in (run, run / "prompt"):
        capsys.readouterr()
        assert main(["inspect", str(path), "--json"]) == 0
        shown.append(json.loads(capsys.readouterr().out)["trajectory"])
    assert shown[0] == shown[1] is not None
