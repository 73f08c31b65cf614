"""The documents' examples and commands run as they are written, on a tiny model in place of the real one."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import REPOSITORY

from ptuning.cli import main as cli
from ptuning.config.run import RunConfig
from ptuning.training.run import train

FOLDERS = ("ptuning", "ptuning/export", "ptuning/inspection", "configs", "scripts")
DOCUMENTS = ("README.md", *(f"{folder}/README.md" for folder in FOLDERS))
TEXTS = {name: (REPOSITORY / name).read_text(encoding="utf-8") for name in DOCUMENTS}
README = TEXTS["README.md"]
FEW = ".set_params(max_steps=3).fit(texts, labels)"


def blocks(language: str, documents: Sequence[str] = DOCUMENTS) -> list[str]:
    found = (re.findall(rf"```{language}\n(.*?)```", TEXTS[name], flags=re.DOTALL) for name in documents)
    return [block for blocks in found for block in blocks]


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
        '"report.html"': f'"{tmp_path}/report.html"',
        "prompts/film": tmp_path / "prompts" / "film",
        "runs/mine": tmp_path / "mine",
        "runs/compare": tmp_path / "compare",
        "runs/memory": tmp_path / "memory",
        "runs/loop": tmp_path / "loop",
        "models/film": tmp_path / "film",
        "models/both": tmp_path / "both",
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
    assert cli.main(["export", str(tmp_path / "run"), "--to", "merged", "--output", str(tmp_path / "film")]) == 0
    examples = blocks("python")
    assert len(examples) >= 5
    for example in examples:
        shorter = in_place(example, tmp_path, model_directory)
        for old, new in (("range(320)", "range(3)"), ("max_steps=60", "max_steps=3"), (".fit(texts, labels)", FEW)):
            shorter = shorter.replace(old, new)
        exec(compile(shorter, "README.md", "exec"), {})
    assert all(
        any(each in example for example in examples) for each in ("range(320)", "max_steps=60", ".fit(texts, labels)")
    )
    assert "Classification(label=" in capsys.readouterr().out
    assert (tmp_path / "loop" / "prompt" / "adapter_config.json").exists()


def test_the_notebook_runs(run_config: Path, tmp_path: Path, model_directory: Path) -> None:
    cells = json.loads((REPOSITORY / "scripts" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(codes) == 6
    names: dict[str, object] = {}
    for code in codes:
        shorter = in_place(code, tmp_path, model_directory).replace(
            "PromptClassifier(base)", "PromptClassifier(base, max_steps=3)"
        )
        exec(compile(shorter.replace("max_steps=60", "max_steps=3"), "quickstart.ipynb", "exec"), names)
    assert (tmp_path / "prompts" / "film" / "ptuning.json").exists()


def test_yaml_example_is_a_config(run_config: Path, tmp_path: Path, model_directory: Path) -> None:
    (example,) = blocks("yaml", ["README.md"])
    written = tmp_path / "example.yaml"
    written.write_text(example)
    assert RunConfig.from_yaml(written).data.verbalizer == {"negative": " negative", "positive": " positive"}
    assert example.splitlines()[1:] == (REPOSITORY / "configs/movie_reviews.yaml").read_text().splitlines()[1:]


def test_commands_run(
    run_config: Path,
    tmp_path: Path,
    model_directory: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained_run(run_config)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("ptuning ")]
    assert {command.split()[1] for command in commands} == {
        *("init", "train", "evaluate", "predict", "inspect", "harden", "compare", "export")
    }
    for command in commands:
        shorter = command.partition("  #")[0].replace("max_steps 320", "max_steps 3").replace("steps 100", "steps 2")
        words = shlex.split(in_place(shorter, tmp_path, model_directory))
        assert cli.main(words[1:]) == 0, capsys.readouterr().err
        printed = capsys.readouterr().out
        assert printed
        if "--json" in words:
            assert json.loads(printed)


def test_what_the_documents_name_exists() -> None:
    scripts = {each for text in TEXTS.values() for each in re.findall(r"scripts/\w+\.\w+", text)}
    assert {"scripts/demo.sh", "scripts/test.sh", "scripts/conformance.sh"} <= scripts
    assert all((REPOSITORY / script).exists() for script in scripts)
    links = [(name, link) for name, text in TEXTS.items() for link in re.findall(r"\]\(([^)#]+)", text)]
    assert len(links) > 5
    assert all(((REPOSITORY / name).parent / link).exists() for name, link in links), links


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 160
