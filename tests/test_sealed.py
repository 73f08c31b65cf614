"""Every bit of what is read back is under a digest, and types are checked at the door."""

import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sealing import change_json

from ptuning.config.run import RunConfig
from ptuning.errors import FileError, PromptError, PTuningError
from ptuning.files import read_regular
from ptuning.prompts.soft_prompt import SoftPrompt
from ptuning.sealed import BLANK, has_changed, seal
from ptuning.training.run import train
from ptuning.training.run_directory import BEST, LAST, RunDirectory
from ptuning.typed import read_json

LABELS = {"good": " good", "bad": " bad"}
FLIPS = 100  # for each artefact


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> Path:
    """The directory of a finished run."""
    folder = tmp_path_factory.mktemp("sealed")
    rows = [{"text": f"film {i}", "label": list(LABELS)[i % 2]} for i in range(8)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {
        "model.name_or_path": str(model_directory),
        "data.train": str(folder / "rows.jsonl"),
        "data.validation": str(folder / "rows.jsonl"),
        "data.template": "{prompt:4}{text}:",
        "data.verbalizer": dict(LABELS),
        "train.max_steps": 4,
        "train.output_dir": str(folder / "run"),
    }
    train(RunConfig.from_settings(settings))
    return folder / "run"


def resume(run: Path) -> None:
    (run / "metrics.json").unlink(missing_ok=True)
    train(RunConfig.from_yaml(run / "config.yaml", ["--train.output_dir", str(run)]), resume=True)


ARTEFACTS: dict[str, Callable[[Path], Any]] = {
    "prompt/adapter_model.safetensors": SoftPrompt.load,
    "prompt/ptuning.json": SoftPrompt.load,
    "checkpoints/last.pt": lambda run: RunDirectory(run).load_checkpoint(LAST),
    "checkpoints/best.pt": lambda run: RunDirectory(run).load_checkpoint(BEST),
    "checkpoints/prompts/00000004.safetensors": lambda run: RunDirectory(run).snapshots(),
    "config.yaml": lambda run: RunDirectory(run).renamed_sources(RunConfig.from_yaml(run / "config.yaml")),
    "metrics.json": lambda run: RunDirectory(run).read_metrics(),
}
"""File of a run -> what reads it back."""


@pytest.mark.parametrize("name", ARTEFACTS)
def test_every_flipped_bit_is_noticed(run: Path, tmp_path: Path, name: str) -> None:
    whole = shutil.copytree(run, tmp_path / "run")
    file, chance = whole / name, random.Random(name)
    content = file.read_bytes()
    ARTEFACTS[name](whole)
    for bit in chance.sample(range(8 * len(content)), FLIPS):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(PTuningError) as raised:
            ARTEFACTS[name](whole)
        assert "\n" not in str(raised.value)
    file.write_bytes(content)
    ARTEFACTS[name](whole)


def test_a_broken_checkpoint_names_the_other_one(run: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(run, tmp_path / "run")
    last, best = (whole / "checkpoints" / f"{name}.pt" for name in (LAST, BEST))
    expected = SoftPrompt.load(whole).embeddings_PH
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    with pytest.raises(PTuningError, match=r"last\.pt has changed since it was written.*Put .*best\.pt in its place"):
        resume(whole)
    shutil.copy(best, last)
    resume(whole)
    assert SoftPrompt.load(whole).embeddings_PH.equal(expected)


def test_a_best_checkpoint_that_is_gone_is_told_and_the_last_step_kept(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = shutil.copytree(run, tmp_path / "run")
    best = SoftPrompt.load(whole).training["best_step"]
    (whole / "checkpoints" / "best.pt").unlink()
    resume(whole)
    if best:  # else the untrained prompt was the best
        assert f"the checkpoint of the best step, {best}, is gone: step 4 is kept" in caplog.text
        assert SoftPrompt.load(whole).training["best_step"] == 4


def test_line_ends_of_another_system_are_no_change(run: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(run, tmp_path / "run")
    for name in ("prompt/ptuning.json", "config.yaml", "metrics.json"):
        content = (whole / name).read_bytes()
        assert b"\r\n" not in content
        (whole / name).write_bytes(content.replace(b"\n", b"\r\n"))
        ARTEFACTS[name](whole)


def test_metrics_of_an_earlier_version_are_read(run: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(run, tmp_path / "run")
    metrics = json.loads((whole / "metrics.json").read_text())
    (whole / "metrics.json").write_text(json.dumps({key: metrics[key] for key in ("split", "results", "training")}))
    assert RunDirectory(whole).read_metrics()["training"] == metrics["training"]


def test_what_could_not_be_read_back_is_not_saved(run: Path, tmp_path: Path) -> None:
    prompt = SoftPrompt.load(run)
    for training, told in {
        '{"seed": "a"}': "training.seed: 'a', input",
        '{"learning_rate": NaN}': "not JSON compliant",
    }.items():
        with pytest.raises(PromptError, match=rf"ptuning.json cannot tell \(.*{told}"):
            dataclasses.replace(prompt, training=json.loads(training)).save(tmp_path / "prompt")
    assert not (tmp_path / "prompt").exists()


def test_marks_alone_show_a_change(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(f"one\n# {BLANK}\ntwo\n")
    seal(file)
    sealed = file.read_bytes()
    assert not has_changed(sealed)
    assert not has_changed(b"one\ntwo\n")  # never sealed
    assert has_changed(sealed.replace(b"ptuning-sha256:", b"ptuning-sha255:", 1))
    assert has_changed(sealed.replace(b":ptuning-sha256", b":ptuning-sha255"))
    assert has_changed(sealed + b"\n")


WRONG_TYPES: dict[str, dict[str, Any]] = {
    r"task\.template: 5, input should be a valid string": {"task": {"template": 5}},
    r"task\.max_length: '512', input should be a valid integer": {
        "task": {"template": "{prompt:4}", "max_length": "512"}
    },
    r"task\.chat_template: 'x', input should be a valid boolean": {
        "task": {"template": "{prompt:4}", "chat_template": "x"}
    },
    r"init: \[\], input should be an object": {"init": []},
    r"results: 5, input should be an object": {"results": 5},
    r"results\.soft prompt\.accuracy: 'high', input should be a valid number": {
        "results": {"soft prompt": {"num_rows": 1, "interval": [0.0, 1.0], "accuracy": "high"}}
    },
    "it holds NaN": {"results": {"soft prompt": {"num_rows": 1, "interval": [0.0, 1.0], "accuracy": float("nan")}}},
    r"base\.fingerprint\.weights: 'abc', input should be a valid": {
        "base": {
            "name": "a",
            "revision": None,
            "fingerprint": {"architecture": {}, "weights": "abc", "dtype": "float32"},
        }
    },
}


@pytest.mark.parametrize("told", WRONG_TYPES)
def test_wrong_types_are_told(run: Path, tmp_path: Path, told: str) -> None:
    prompt = shutil.copytree(run / "prompt", tmp_path / "prompt")
    change_json(prompt / "ptuning.json", **WRONG_TYPES[told])
    with pytest.raises(PromptError, match=rf"ptuning\.json is truncated or broken \({told}"):
        SoftPrompt.load(prompt)


@dataclass(frozen=True)
class Pair:
    number: int
    text: str = ""


def test_json_is_read_strictly() -> None:
    assert read_json(b'{"number": 1, "more": [1]}', Pair) == {"number": 1, "more": [1]}
    for text, told in {
        b"[" * 100_000: "nested too deeply",
        b'{"number": 1, "more": ' + b"[" * 300 + b"]" * 300 + b"}": "recursion limit",
        b'{"number": 1, "more": 1e999}': "it holds 1e999",
        b'{"number": 1.5}': "number: 1.5, input should be a valid integer",
        b'{"number": 1' + b"0" * 5000 + b"}": "Exceeds the limit",
        b'{"text": "a"}': "number: .*field required",
        b"\xff": "can't decode",
    }.items():
        with pytest.raises(ValueError, match=told):
            read_json(text, Pair)


def test_only_regular_files_of_a_fair_size_are_read(tmp_path: Path) -> None:

    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert read_regular(tmp_path / "link", 3) == b"abc"
    for path, told in {
        tmp_path / "pipe": "no regular file",
        tmp_path: "no regular file",
        Path("/dev/zero"): "no regular file",
        tmp_path / "missing": "No such file",
    }.items():
        with pytest.raises(FileError, match=told):
            read_regular(path, 3)
    with pytest.raises(FileError, match="has 3 bytes; expected at most 2"):
        read_regular(tmp_path / "file", 2)
