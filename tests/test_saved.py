"""What an earlier version wrote is still read: a run that was killed after step 6 of 12, and two prompts."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ptuning.config.run import RunConfig
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.prompts.soft_prompt import SoftPrompt
from ptuning.training.run import train

SAVED = Path(__file__).parent / "saved"
ANSWERS = json.loads((SAVED / "answers.json").read_text())


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, as the working directory: the run's paths are relative to it."""
    monkeypatch.chdir(shutil.copytree(SAVED, tmp_path / "saved"))
    return tmp_path / "saved"


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_killed_run_is_resumed_and_ends_as_the_whole_one(saved: Path) -> None:
    result = train(RunConfig.from_yaml("config.yaml"), resume=True)
    found, expected = records(saved / "run" / "metrics.jsonl"), records(saved / "whole_metrics.jsonl")
    assert (
        [record["step"] for record in found]
        == [record["step"] for record in expected]
        == [2, 4, 4, 6, 8, 8, 10, 12, 12]
    )
    for key in ("loss", "eval_loss", "learning_rate", "grad_norm"):
        values = [record.get(key) for record in expected]
        assert [record.get(key) for record in found] == [value and pytest.approx(value, rel=1e-4) for value in values]
    whole = SoftPrompt.load(saved / "prompt")
    torch.testing.assert_close(result.prompt.embeddings_PH, whole.embeddings_PH, rtol=1e-3, atol=1e-4)
    assert result.prompt.training["steps"] == whole.training["steps"] == 12
    assert result.prompt.training["best_step"] == whole.training["best_step"]
    assert result.prompt.init == whole.init
    for name, metrics in whole.results.items():
        assert result.prompt.results[name]["loss"] == pytest.approx(metrics["loss"], rel=1e-4)


@pytest.mark.parametrize(("name", "directory"), [("static", "prompt"), ("conditioned", "conditioned_prompt")])
def test_saved_prompts_answer_as_they_did(saved: Path, name: str, directory: str) -> None:
    lm = PromptedLM.from_pretrained("base", {"saved": directory}, dtype="float32", device="cpu")
    expected = ANSWERS[name]
    found = [row.probabilities for row in lm.classify(ANSWERS["rows"])]
    assert found == [pytest.approx(scores, abs=1e-4) for scores in expected["probabilities"]]
    assert lm.log_probs(ANSWERS["rows"]) == pytest.approx(expected["log_probs"], abs=1e-4)
