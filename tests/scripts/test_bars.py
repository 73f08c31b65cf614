"""The GPU check's bars judge measurements as they should, and its script runs from end to end, here without a GPU."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from benchmark import bars
from conftest import REPOSITORY, review_rows, write_csv

SCRIPT = REPOSITORY / "scripts" / "gpu_check.sh"


def case(**changes: Any) -> dict[str, Any]:
    """Numbers that meet every bar, of two rounds."""
    found = {
        "train_tokens_per_second": {"ours": [410.0, 430.0], "peft": [100.0, 100.0]},
        "fraction_of_limit": {"ours": [0.6, 0.7], "peft": [0.1, 0.1]},
        "step_bytes": {"ours": 50, "peft": 100},
        "classify_rows_per_second": {"ours": [160.0, 150.0], "peft": [100.0, 100.0]},
        "first_step_seconds": {"ours": [2.0], "peft": [9.0]},
    }
    for rows in (1, 8):
        found[f"first_token_seconds_{rows}"] = {"ours": [0.5, 0.5], "peft": [0.6, 0.6]}
        found[f"generate_tokens_per_second_{rows}"] = {"ours": [60.0, 60.0], "peft": [50.0, 50.0]}
    return {**found, **changes}


def missed(cases: dict[str, Any], *parts: str) -> list[str]:
    return [line for line in bars.table(cases, parts) if line.endswith("| MISSED |")]


def test_good_numbers_meet_all_bars() -> None:
    cases = {part: case() for part in bars.TRAINING}
    assert bars.num_missed(cases) == 0
    lines = bars.table(cases)
    assert len(lines) == 2 + 5 * 8 + 1
    assert "| 8b-long | fraction of the multiply limit | at least 0.55 | 0.65 | met |" in lines
    assert "| 1b | first step, s | at most 3 | 2 | met |" in lines


@pytest.mark.parametrize(
    ("part", "change", "line"),
    [
        ("smollm2", {"train_tokens_per_second": {"ours": [390.0], "peft": [100.0]}}, "at least 4 | 3.9 |"),
        ("8b-long", {"fraction_of_limit": {"ours": [0.5], "peft": [0.9]}}, "at least 0.55 | 0.5 |"),
        ("1b-long", {"step_bytes": {"ours": 70, "peft": 100}}, "at most 0.6 | 0.7 |"),
        ("1b", {"classify_rows_per_second": {"ours": [120.0], "peft": [100.0]}}, "at least 1.5 | 1.2 |"),
        ("1b-long", {"classify_rows_per_second": {"ours": [90.0], "peft": [100.0]}}, "at least 1 | 0.9 |"),
        ("1b", {"first_token_seconds_8": {"ours": [0.5], "peft": [0.25]}}, "at least 1 | 0.5 |"),
        ("1b", {"generate_tokens_per_second_1": {"ours": [80.0], "peft": [100.0]}}, "at least 1 | 0.8 |"),
        ("1b", {"first_step_seconds": {"ours": [6.6], "peft": [1.0]}}, "at most 3 | 6.6 |"),
    ],
)
def test_a_number_that_is_not_good_enough_misses_its_bar_alone(part: str, change: dict[str, Any], line: str) -> None:
    (found,) = missed({part: case(**change)}, part)
    assert found.startswith(f"| {part} |")
    assert line in found


def test_long_texts_need_less_in_classification() -> None:
    change = {"classify_rows_per_second": {"ours": [120.0], "peft": [100.0]}}
    assert not missed({"1b-long": case(**change)}, "1b-long")


def test_what_was_not_measured_misses_its_bars(tmp_path: Path) -> None:
    broken_off = case(train_tokens_per_second={"peft": [100.0]}, first_token_seconds_8={"ours": [0.5], "peft": []})
    (tmp_path / "1b.json").write_text(json.dumps({"cases": [broken_off]}))
    cases = bars.read(tmp_path, ["1b", "smollm2"])
    assert [line.split(" | ")[1] for line in missed(cases, "1b")] == [
        "training, useful tokens/s over PEFT's",
        "first token, batch 8, times as fast as PEFT's",
    ]
    assert bars.num_missed(cases, ["smollm2"]) == 8
    assert all("| not measured |" in line for line in missed(cases, "smollm2"))


@pytest.mark.parametrize(("options", "status"), [([], 1), (["--show-only"], 0)])
def test_status_tells_whether_a_bar_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], status: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["bars", str(tmp_path), "--parts", "1b", *options])
    with pytest.raises(SystemExit) as exited:
        bars.main()
    assert exited.value.code == status


def run(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The check on this machine's processor, with `tmp_path` for its files."""
    settings = {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "DEVICE": "cpu", "QUICK": "1", **variables}
    command = ["bash", str(SCRIPT), str(tmp_path / "wheels"), str(tmp_path / "assets")]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)


@pytest.fixture
def assets(tmp_path: Path, model_directory: Path) -> Path:
    """A tokenizer and texts, as the check needs them."""
    tokenizer = tmp_path / "assets" / "smollm2-135m-instruct"
    shutil.copytree(model_directory, tokenizer, ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "assets" / "movie_reviews").mkdir()
    write_csv(tmp_path / "assets" / "movie_reviews" / "train.csv", review_rows(40))
    return tmp_path / "assets"


def test_the_check_runs_from_end_to_end(tmp_path: Path, assets: Path) -> None:
    result = run(tmp_path, PARTS="1b")
    assert result.returncode == 0, result.stdout
    assert "| operators | " in result.stdout
    assert "| 1b | training, useful tokens/s over PEFT's | at least 3 | " in result.stdout
    assert "failed: nothing" in (tmp_path / "out" / "gpu_check.log").read_text()
    (case,) = json.loads((tmp_path / "out" / "1b.json").read_text())["cases"]
    assert case["about"]["ours"]["model"]["num_hidden_layers"] == 22
    assert case["profile"]["peft"]["operators"] > 1000


def test_a_part_that_fails_does_not_stop_the_next(tmp_path: Path, assets: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\n[[ "$*" == *bench.py* ]] && exit 3\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    result = run(tmp_path, PARTS="smollm2 1b-p100", PYTHON=str(python))
    assert result.returncode == 1
    assert "== smollm2 failed with status 3" in result.stdout
    assert "== 1b-p100 failed with status 3" in result.stdout
    assert "failed: smollm2 1b-p100" in result.stdout


def test_no_part_begins_when_the_time_is_up(tmp_path: Path, assets: Path) -> None:
    result = run(tmp_path, PARTS="tests 1b", WHOLE="1")
    assert result.returncode == 1
    assert "failed: tests 1b" in result.stdout


@pytest.mark.parametrize("missing", ["smollm2-135m-instruct/tokenizer.json", "movie_reviews/train.csv"])
def test_without_a_tokenizer_or_texts_one_line_tells_so(tmp_path: Path, assets: Path, missing: str) -> None:
    (assets / missing).unlink()
    result = run(tmp_path, PARTS="1b")
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if "is missing" in line]
    assert "even random models need a tokenizer and texts; no benchmark" in line
    assert "failed: benchmark" in result.stdout


def wheel(folder: Path, name: str, version: str) -> None:
    """A wheel with nothing in it but its name."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


def test_wheels_come_before_what_is_installed(tmp_path: Path, assets: Path) -> None:
    wheel(tmp_path / "wheels", "dill", "99.0")
    assert "'dill': '99.0'" in run(tmp_path, PARTS="1b", WHOLE="1").stdout


def test_a_broken_wheel_stops_the_check(tmp_path: Path, assets: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "dill-99.0-py3-none-any.whl").write_text("not a wheel")
    result = run(tmp_path, PARTS="1b")
    assert result.returncode == 1
    assert "== Nothing was run" in result.stdout


def test_help_tells_what_is_needed() -> None:
    told = subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, text=True, check=True).stdout
    for word in ("WHEELS", "transformers 5.23", "ASSETS", "QUICK"):
        assert word in told
    assert "set -uo" not in told
