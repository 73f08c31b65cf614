"""`ptuning export`: an array, a merged model, and what it says."""

import json
from pathlib import Path

import numpy
import pytest
import torch
import transformers

from ptuning.cli.main import main
from ptuning.config.run import RunConfig
from ptuning.export.merged_prompts import MergedPrompts
from ptuning.prompts.soft_prompt import SoftPrompt
from ptuning.training.run import train


@pytest.fixture
def run(run_config: Path, tmp_path: Path) -> Path:
    """A short run's directory."""
    train(RunConfig.from_yaml(run_config, ["--train.max_steps=2"]))
    return tmp_path / "run"


def test_an_array_is_written(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    file = tmp_path / "film.npy"
    assert main(["export", str(run), "--to", "npy", "--output", str(file)]) == 0
    assert capsys.readouterr().out == (
        f"4 virtual tokens of width 32, float32\nsaved: {file}\nwhat they are: {file}.json\n"
    )
    assert numpy.array_equal(numpy.load(file), SoftPrompt.load(run).embeddings_PH.numpy())
    assert main(["export", str(run), "--to", "safetensors", "--output", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(file), "description": f"{file}.json"}


def test_a_merged_model_is_written(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    merged = tmp_path / "merged"
    assert main(["export", str(run), "--to", "merged", "--output", str(merged)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("run: 4 tokens, <|run_0|> to <|run_3|>\n")
    assert f"saved: {merged}\nhow a row is written for it: {merged}/README.md\n" in out
    assert '"logit_bias": {"338": -100, "339": -100, "340": -100, "341": -100}' in out
    assert MergedPrompts.load(merged).texts(["a film"]) == ["<|run_0|><|run_1|><|run_2|><|run_3|><s>review: a film"]
    embeddings = transformers.AutoModelForCausalLM.from_pretrained(merged).get_input_embeddings().weight
    assert torch.equal(embeddings[338:], SoftPrompt.load(run).embeddings_PH)


def test_several_prompts_get_names(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    merged, command = tmp_path / "merged", ["export", str(run), str(run / "prompt"), "--to", "merged"]
    assert main([*command, "--output", str(merged)]) == 2
    assert capsys.readouterr().err == (
        "ptuning: two prompts named 'run'; expected a name for each. Give --name once for each prompt.\n"
    )
    assert main([*command, "--output", str(merged), "--name", "a"]) == 2
    assert "1 names for 2 prompts; expected one for each" in capsys.readouterr().err
    names = ["--name", "a", "--name", "b"]
    assert main([*command, "--output", str(merged), *names, "--dtype", "bfloat16", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["texts"]["b"] == "<|b_0|><|b_1|><|b_2|><|b_3|><s>review: {text}"
    assert printed["suppressed_ids"] == list(range(338, 346))


def test_mistakes_are_told_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    full = tmp_path / "full" / "a.csv"
    full.parent.mkdir()
    full.touch()
    for arguments, message in (
        (["none", "--to", "npy", "--output", "a"], "prompt directory none does not exist"),
        ([str(run), str(run), "--to", "npy", "--output", "a"], "2 prompts with --to npy; expected one"),
        ([str(run), "--to", "gguf", "--output", "a"], "argument --to: invalid choice: 'gguf'"),
        ([str(run), "--to", "merged", "--output", str(full.parent)], "full holds a.csv, which is not part of a merged"),
        ([str(run), "--to", "merged", "--output", str(full)], "a.csv is a file; expected a new directory"),
        ([str(run), "--to", "merged", "--output", "a", "--base", "none"], "model none, no directory here, cannot be"),
    ):
        assert main(["export", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
