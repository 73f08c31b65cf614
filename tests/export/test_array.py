"""Arrays of virtual tokens for other programs."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

from ptuning.data.task import Task
from ptuning.errors import FileError, PromptError
from ptuning.export.array import write_array
from ptuning.model import Fingerprint
from ptuning.prompts import encoders
from ptuning.prompts.soft_prompt import SoftPrompt

TASK = Task("{prompt:3}review: {text}{prompt:2}", verbalizer={"bad": " bad", "good": " good"})
MARK = Fingerprint({"model_type": "llama"}, (0.5, 1.0), "float32")


def prompt() -> SoftPrompt:
    generator = torch.Generator().manual_seed(0)
    return SoftPrompt(torch.randn(5, 8, generator=generator), TASK, "base", MARK, revision="main")


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_the_array_is_the_prompt_and_the_description_says_what_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"film.{kind}"
    described = json.loads(write_array(prompt(), path, kind).read_text())
    array = torch.from_numpy(numpy.load(path)) if kind == "npy" else load_file(path)["prompt_embeddings"]
    assert array.dtype == torch.float32
    assert torch.equal(array, prompt().embeddings_PH)
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name, f"{path.name}.json"]
    assert described["shape"] == [5, 8]
    assert described["slots"] == [3, 2]
    assert described["is_leading"] is False
    assert Task(**described["task"]) == TASK
    assert described["base"]["name"] == "base"
    assert described["base"]["fingerprint"]["weights"] == [0.5, 1.0]
    assert described["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_prompt_without_a_task_stands_before_the_text(tmp_path: Path) -> None:
    described = json.loads(write_array(dataclasses.replace(prompt(), task=None), tmp_path / "a.npy").read_text())
    assert (described["task"], described["slots"], described["is_leading"]) == (None, [5], True)


def test_a_prompt_that_is_no_array_is_told(tmp_path: Path) -> None:
    encoder = encoders.Conditioned(prompt().embeddings_PH)
    conditioned = dataclasses.replace(prompt(), weights=encoder.state_dict())
    with pytest.raises(PromptError, match="a conditioned prompt for an array: its virtual tokens depend on each row"):
        write_array(conditioned, tmp_path / "a.npy")
    with pytest.raises(PromptError, match="a prompt without virtual tokens for an array"):
        write_array(prompt().disabled(), tmp_path / "a.npy")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told_before_anything_is(tmp_path: Path) -> None:
    (tmp_path / "a.npy.json").touch(mode=0o444)
    (tmp_path / "a.npy.json").chmod(0o444)
    with pytest.raises(FileError, match=r"a\.npy\.json is read-only"):
        write_array(prompt(), tmp_path / "a.npy")
    assert not (tmp_path / "a.npy").exists()
