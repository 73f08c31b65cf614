"""The comparisons' scripts run, and find the same scores and losses whichever way they are had."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REPOSITORY, review_rows, write_csv

pytestmark = [  # what PEFT has to say
    pytest.mark.filterwarnings("ignore:Position ids are not supported"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture(autouse=True)
def scripts_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides in the test's own process, which has loaded everything."""
    from benchmark import turns

    @contextmanager
    def process(kind: Any, case: Any) -> Iterator[Any]:
        side = kind(case)
        yield lambda method, *arguments: getattr(side, method)(*arguments)

    monkeypatch.setattr(turns, "process", process)


@pytest.mark.usefixtures("in_this_process")
def test_both_sides_are_measured(
    tmp_path: Path, model_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_csv(tmp_path / "rows.csv", review_rows(20))
    options = ["--base", str(model_directory), "--data", str(data), "--dtype", "float32", "--virtual", "5"]
    files = ["--json", str(tmp_path / "bench.json"), "--png", str(tmp_path / "bench.png")]
    monkeypatch.setattr(sys, "argv", ["bench", *options, "--batch", "9", "--rounds", "2", *files])
    script("bench").main()
    (case,) = json.loads((tmp_path / "bench.json").read_text())["cases"]
    assert all(len(case["train_tokens_per_second"][side]) == 2 for side in ("ours", "peft"))
    assert "| training, useful tokens/s |" in capsys.readouterr().out
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_sides_that_compute_different_losses_are_not_compared(
    tmp_path: Path, model_directory: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmark import sides, turns

    data = write_csv(tmp_path / "rows.csv", review_rows(20))
    case = sides.Case(str(model_directory), str(data), "float32", 5, 4)
    monkeypatch.setattr(sides.Ours, "loss_of", lambda *_: 99.0)
    with pytest.raises(SystemExit, match=r"ptuning's loss is 99.0, PEFT's .*; expected the same"):
        turns.compared(case, turns.Plan(1))


@pytest.mark.usefixtures("in_this_process")
def test_growth_is_measured_and_not_measured_again(
    tmp_path: Path, model_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    growth = script("bench_growth")
    data = write_csv(tmp_path / "rows.csv", review_rows(20))
    points = {"num_virtual": (1, 6), "batch_size": (2, 4), "num_text": (4, 8), "num_layers": (1, 2)}
    monkeypatch.setattr(growth, "GROWTH", {field: (field, values) for field, values in points.items()})
    files = ["--json", str(tmp_path / "growth.json"), "--png", str(tmp_path / "growth.png")]
    options = ["--base", str(model_directory), "--data", str(data), "--dtype", "float32", "--rounds", "1", *files]
    monkeypatch.setattr(sys, "argv", ["bench_growth", *options])
    growth.main()
    first = capsys.readouterr().out
    assert sum(line.startswith("| num_") or line.startswith("| batch_") for line in first.splitlines()) == 4
    assert (tmp_path / "growth.png").stat().st_size > 1000
    monkeypatch.setattr(growth, "step_costs", pytest.fail)
    growth.main()
    assert capsys.readouterr().out == first


def test_costs_on_paper_say_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for memory, told in (
        ("1e12", "all rows fit"),
        ("80e9", "set train.max_batch_tokens: "),
        ("14e9", "not even one row"),
    ):
        monkeypatch.setattr(sys, "argv", ["on_paper", "--memory", memory])
        script("on_paper").main()
        assert told in capsys.readouterr().out


def test_ways_of_answering_with_many_prompts_agree(
    tmp_path: Path, model_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = script("bench_many_prompts")
    data = write_csv(tmp_path / "rows.csv", review_rows(bench.ROWS))
    places = ["--base", str(model_directory), "--data", str(data)]
    monkeypatch.setattr(sys, "argv", ["bench", "--rounds", "1", *places])
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    differences = [float(line.split(": ")[1]) for line in lines if line.startswith("largest difference")]
    assert len(differences) == 2
    assert max(differences) < 1e-4
    assert sum("rows per second" in line for line in lines) == 3
