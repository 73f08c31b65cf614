"""The comparison's script runs, and finds the same scores whichever way they are had."""

import importlib.util
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, review_rows, write_csv


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_ways_of_answering_with_many_prompts_agree(
    tmp_path: Path, model_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("bench", REPOSITORY / "scripts" / "bench_many_prompts.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    data = write_csv(tmp_path / "rows.csv", review_rows(bench.ROWS))
    places = ["--base", str(model_directory), "--data", str(data)]
    monkeypatch.setattr(sys, "argv", ["bench", "--rounds", "1", *places])
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    differences = [float(line.split(": ")[1]) for line in lines if line.startswith("largest difference")]
    assert len(differences) == 3
    assert max(differences) < 1e-4
    assert sum("rows per second" in line for line in lines) == 4
