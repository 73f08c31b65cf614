"""The wheel, installed outside the repository, is whole and works."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

SMOKE = """
import importlib, json, pkgutil, sys
import ptuning
for found in pkgutil.walk_packages(ptuning.__path__, "ptuning."):
    importlib.import_module(found.name)
saved, rows = sys.argv[1], [{"text": "the film was good"}]
options = {"dtype": "float32", "device": "cpu"}
lm = ptuning.PromptedLM.from_pretrained(f"{saved}/base", {"p": f"{saved}/prompt"}, **options)
word = ptuning.inspect(lm.prompts["p"], lm.backbone).verdict.word
print(json.dumps([ptuning.__file__, len(lm.classify(rows)), word]))
"""


def output_of(*command: str, cwd: Path, **environment: str) -> str:
    run = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as its wheel installs it."""
    place = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    sources = place / "sources"  # the build leaves files beside the sources
    sources.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "ptuning"):
        (sources / name).symlink_to(REPOSITORY / name)
    output_of(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place), str(sources), cwd=place)
    (wheel,) = place.glob("*.whl")
    output_of(*pip, "install", "--no-deps", "--target", str(place / "site"), str(wheel), cwd=place)
    return place / "site"


def test_everything_in_it_can_be_imported_and_used(installed: Path) -> None:
    command = (sys.executable, "-c", SMOKE, str(REPOSITORY / "tests" / "saved"))
    told = json.loads(output_of(*command, cwd=installed.parent, PYTHONPATH=str(installed)).splitlines()[-1])
    assert told == [str(installed / "ptuning" / "__init__.py"), 1, "NOT JUDGED"]


def test_it_has_every_module_and_says_that_it_is_typed(installed: Path) -> None:
    ours, theirs = (
        {path.relative_to(each).as_posix() for path in each.rglob("*.py")}
        for each in (REPOSITORY / "ptuning", installed / "ptuning")
    )
    assert ours == theirs
    assert (installed / "ptuning" / "py.typed").is_file()


def test_its_command_runs(installed: Path) -> None:
    script = installed / "bin" / "ptuning"
    told = output_of(sys.executable, str(script), "--help", cwd=installed.parent, PYTHONPATH=str(installed))
    assert "examples:" in told
