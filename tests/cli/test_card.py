"""`ptuning inspect --card` puts the verdict into the saved prompt, from which every later card tells it."""

from pathlib import Path

import pytest
import torch
from conftest import review_rows, write_csv

from ptuning.cli.main import main
from ptuning.data.task import Task
from ptuning.errors import PromptError
from ptuning.inspection import inspect
from ptuning.inspection.verdict import WORDS
from ptuning.model import Backbone
from ptuning.prompts.soft_prompt import SoftPrompt

TASK = Task("{prompt:4}review: {text}", verbalizer={"negative": " negative", "positive": " positive"})


@pytest.fixture
def saved(backbone: Backbone, model_directory: Path, tmp_path: Path) -> Path:
    embeddings_PH = torch.randn(4, backbone.width, generator=torch.Generator().manual_seed(0))
    return SoftPrompt(embeddings_PH, TASK, str(model_directory), backbone.fingerprint).save(tmp_path / "prompt")


def test_the_verdict_is_kept_with_the_prompt(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = str(write_csv(tmp_path / "rows.csv", review_rows(60)))
    before = SoftPrompt.load(saved)
    assert main(["inspect", str(saved), "--data", rows, "--device", "cpu"]) == 0
    assert SoftPrompt.load(saved).verdict == {}
    assert "## Inspection" not in (saved / "README.md").read_text()
    assert main(["inspect", str(saved), "--data", rows, "--device", "cpu", "--card"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"saved: {saved}/README.md"
    after = SoftPrompt.load(saved)
    word = after.verdict["word"]
    assert word in WORDS
    assert torch.equal(after.embeddings_PH, before.embeddings_PH)
    assert f"## Inspection\n\n**{word}**, judged on `60 rows of {rows}`. " in (saved / "README.md").read_text()
    assert f"**{word}**" in (after.save(tmp_path / "again") / "README.md").read_text()


def test_a_prompt_that_was_not_judged_gets_no_verdict(saved: Path, backbone: Backbone) -> None:
    prompt = SoftPrompt.load(saved)
    with pytest.raises(PromptError, match=r"a verdict to record: 8 rows were given, and 50 are needed to judge"):
        inspect(prompt, backbone, review_rows(8)).recorded_in(prompt)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["PROMPT", "--card"], "--card without --data; expected rows to judge on"),
        (["ada/film", "--card", "--data", "ROWS"], "--card for ada/film, which is no directory here"),
    ],
)
def test_a_card_that_cannot_be_written_is_told(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    places = {"PROMPT": str(saved), "ROWS": str(write_csv(tmp_path / "rows.csv", review_rows(4)))}
    assert main(["inspect", *(places.get(each, each) for each in arguments)]) == 2
    assert capsys.readouterr().err.startswith(f"ptuning: {told}")
