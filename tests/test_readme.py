"""The README's examples and commands run as they are written, on a tiny model in place of the real one."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import REPOSITORY

from ptuning.cli import main as cli
from ptuning.config.run import RunConfig
from ptuning.training.run import train

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def in_place(text: str, tmp_path: Path, model_directory: Path) -> str:
    """The text with the demo's paths replaced by a tiny run's."""
    places = {
        "assets/smollm2-135m-instruct": model_directory,
        "assets/movie_reviews/train.csv": tmp_path / "train.csv",
        "assets/movie_reviews/validation.csv": tmp_path / "validation.csv",
        "assets/movie_reviews/test.csv": tmp_path / "test.csv",
        "configs/movie_reviews.yaml": tmp_path / "config.yaml",
        "runs/movie-reviews": tmp_path / "run",
        '"runs"': f'"{tmp_path}"',
        '"movie-reviews"': '"run"',
        "report.html": tmp_path / "report.html",
        "runs/mine": tmp_path / "mine",
        "runs/loop": tmp_path / "loop",
    }
    for old, new in places.items():
        text = text.replace(old, str(new))
    return text


def trained_run(run_config: Path) -> None:
    train(RunConfig.from_yaml(run_config, ["--train.max_steps=2"]))


def test_python_examples_run(
    run_config: Path, tmp_path: Path, model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_run(run_config)
    examples = blocks("python")
    assert len(examples) >= 2
    for example in examples:
        shorter = in_place(example, tmp_path, model_directory).replace("range(320)", "range(3)")
        exec(compile(shorter, "README.md", "exec"), {})
    assert any("range(320)" in example for example in examples)
    assert "Classification(label=" in capsys.readouterr().out
    assert (tmp_path / "loop" / "prompt" / "adapter_config.json").exists()


def test_yaml_example_is_a_config(run_config: Path, tmp_path: Path, model_directory: Path) -> None:
    (example,) = blocks("yaml")
    written = tmp_path / "example.yaml"
    written.write_text(example)
    assert RunConfig.from_yaml(written).data.verbalizer == {"negative": " negative", "positive": " positive"}
    assert example.splitlines()[1:] == (REPOSITORY / "configs/movie_reviews.yaml").read_text().splitlines()[1:]


def test_commands_run(
    run_config: Path, tmp_path: Path, model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_run(run_config)
    capsys.readouterr()
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("ptuning ")]
    assert {command.split()[1] for command in commands} == {"train", "evaluate", "predict", "inspect"}
    for command in commands:
        words = shlex.split(in_place(command.partition("  #")[0], tmp_path, model_directory))
        assert cli.main(words[1:]) == 0, capsys.readouterr().err
        printed = capsys.readouterr().out
        assert printed
        if "--json" in words:
            assert json.loads(printed)


def test_scripts_that_the_readme_names_exist() -> None:
    scripts = re.findall(r"scripts/\w+\.\w+", README)
    assert {"scripts/demo.sh", "scripts/test.sh", "scripts/conformance.sh"} <= set(scripts)
    assert all((REPOSITORY / script).exists() for script in scripts)
