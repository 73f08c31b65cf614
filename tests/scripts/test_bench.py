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


@pytest.mark.usefixtures("in_this_process")
def test_random_models_are_measured_one_after_the_other_and_looked_into(
    tmp_path: Path, model_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmark import shapes

    monkeypatch.setitem(shapes.SHAPES, "22x64", shapes.SHAPES["22x64"] | {"num_hidden_layers": 2})
    data = write_csv(tmp_path / "rows.csv", review_rows(20))
    options = ["--base", str(model_directory), "--data", str(data), "--dtype", "bfloat16", "--virtual", "5"]
    more = ["--shape", "22x64", "--text", "6", "--steps", "2", "--apart", "--profile"]
    files = ["--json", str(tmp_path / "bench.json")]
    monkeypatch.setattr(sys, "argv", ["bench", *options, *more, "--batch", "8", "--rounds", "2", *files])
    script("bench").main()
    (case,) = json.loads((tmp_path / "bench.json").read_text())["cases"]
    assert case["about"]["ours"]["model"]["num_hidden_layers"] == 2
    assert case["about"]["peft"]["model"]["hidden_size"] == 64
    for side in ("ours", "peft"):
        assert len(case["fraction_of_limit"][side]) == 2
        assert case["profile"][side]["operators"] > 100
        assert len(case["first_step_seconds"][side]) == 1
    assert case["useful_tokens"][0] == case["useful_tokens"][1]  # all texts are as long
    assert "| operators whose result depends on data" in capsys.readouterr().out


def test_random_models_are_the_same_but_for_their_attention(model_directory: Path) -> None:
    import torch
    from benchmark import shapes

    ours, theirs = (
        shapes.backbone(str(model_directory), "22x64", "bfloat16", "cpu", is_ours).model for is_ours in (True, False)
    )
    assert ours.config._attn_implementation.startswith("ptuning")
    assert theirs.config._attn_implementation == "sdpa"
    pairs = list(zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert all(one.dtype == torch.bfloat16 and torch.equal(one, other) for one, other in pairs)
    assert len(pairs) > 22 * 7
    loaded = shapes.backbone(str(model_directory), None, "float32", "cpu", is_ours=False).model
    assert loaded.config._attn_implementation == "sdpa"
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.usefixtures("in_this_process")
def test_on_a_gpu_the_timed_batches_are_new(
    tmp_path: Path, model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmark import device, profile, sides, turns

    class Gpu(device.Cpu):  # the processor stands for it
        is_gpu = True

        def __init__(self) -> None:
            self.loaded_bytes, self.peaks = 100, iter([500, *range(900, 800, -1)])  # the second is the most

        def note_loaded(self) -> None:
            pass

        def peak_bytes(self) -> int:
            return next(self.peaks)

    seen: list[list[list[int]]] = []
    step = sides.Ours.step

    def noted(self: Any, prepared: list[Any]) -> None:
        seen.append([each.ids for each in prepared])
        step(self, prepared)

    monkeypatch.setattr(device.Device, "of", lambda _: Gpu())
    monkeypatch.setattr(sides.Ours, "step", noted)
    monkeypatch.setattr(profile, "gpu_use", lambda steps, _: {f"step {k}": step() for k, step in enumerate(steps)})
    data = write_csv(tmp_path / "rows.csv", review_rows(400))
    case = sides.Case(str(model_directory), str(data), "float32", 5, 8)
    measured = turns.compared(case, turns.Plan(rounds=2, steps=3, warm_steps=2, profile=True))
    assert measured["step_bytes"] == {"ours": 800, "peft": 800}
    assert len(seen) == 1 + 2 * (3 + 2) + profile.num_needed(has_gpu=True)
    assert len({str(batch) for batch in seen}) == len(seen)
    assert all(len(measured[f"generate_tokens_per_second_{rows}"]["peft"]) == 2 for rows in (1, 8))


def test_batches_of_a_round_follow_those_of_the_one_before() -> None:
    from benchmark.turns import Plan

    assert [Plan(2).batches(k) for k in range(2)] == [(range(1, 2), range(1, 2)), (range(2, 3), range(2, 3))]
    plan = Plan(rounds=2, steps=10, warm_steps=5)
    assert plan.batches(0) == (range(1, 6), range(6, 16))
    assert plan.batches(1) == (range(16, 21), range(21, 31))
    assert plan.num_batches == 31


def test_a_gpu_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench", "--device", "cuda"])
    with pytest.raises(SystemExit):
        script("bench").main()
    assert "--device cuda: expected a GPU that torch can use" in capsys.readouterr().err


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
