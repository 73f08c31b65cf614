"""A text that is searched in a prompt's place, and its price."""

import json
from pathlib import Path

import pytest
import torch
from conftest import write_csv
from families import tiny_backbone
from test_ladder import ROWS, TASK, tuned

from ptuning.cli.main import main
from ptuning.data.task import Task
from ptuning.errors import ConfigError, PromptError
from ptuning.inspection.hardening import HARDENED, Search, _Searcher, harden, is_word, price_lines
from ptuning.inspection.measures.ladder import HUMAN, NONE, SOFT, TEXT
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.prompts.encoders import Conditioned
from ptuning.prompts.soft_prompt import SoftPrompt

QUICK = Search(max_steps=6, batch_size=8, num_candidates=6, num_tokens=20)


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone(std=0.4)


def test_the_search_lowers_the_loss_of_rows_it_has_not_read(backbone) -> None:
    prompt, vocabulary = tuned(backbone), Vocabulary.of(backbone)
    searcher = _Searcher(prompt.task, backbone, vocabulary, ROWS[:12], Search(20, 12, 8, 20))
    start = searcher._drawn(5)
    found = searcher.found([start], lambda step, loss: None)
    assert found != start
    assert searcher._loss(found, range(12)) < searcher._loss(start, range(12))
    assert searcher._is_read_as(found)


def test_the_gradient_is_that_of_the_tokens_embeddings(backbone) -> None:
    prompt, vocabulary = tuned(backbone), Vocabulary.of(backbone)
    searcher = _Searcher(prompt.task, backbone, vocabulary, ROWS[:4], QUICK)
    ids = searcher._drawn(5)
    gradient_PH = searcher._gradient(ids, range(4))
    candidates = searcher._candidates(ids, gradient_PH)
    assert all(sum(a != b for a, b in zip(ids, each, strict=True)) == 1 for each in candidates)
    place = next(p for p in range(5) if candidates[0][p] != ids[p])
    falls_A = -gradient_PH[place] @ vocabulary.rows(searcher._allowed_A).T
    rank = int((falls_A > falls_A[(searcher._allowed_A == candidates[0][place]).nonzero()[0, 0]]).sum())
    assert rank < QUICK.num_tokens


def test_every_text_is_measured_beside_the_prompt(backbone) -> None:
    steps = list[int]()
    found = harden(
        tuned(backbone), backbone, ROWS[:12], ROWS, "a person", QUICK, on_step=lambda i, loss: steps.append(i)
    )
    assert steps == [1, 2, 3, 4, 5, 6]
    assert found.table.column("prompt") == [NONE, HUMAN, TEXT, HARDENED, SOFT]
    by_name = {record["prompt"]: record for record in found.table}
    assert by_name[HUMAN]["text"] == "a person"
    assert by_name[SOFT]["verdict"] is None
    assert {by_name[name]["verdict"] for name in (HUMAN, TEXT, HARDENED)} == {"NOT JUDGED"}  # too few rows
    assert [len(backbone.tokenizer(text, add_special_tokens=False).input_ids) for text in found.texts] == [3, 2]
    for text in found.texts:
        assert text in found.template
    assert "{prompt" not in found.template
    assert price_lines(found)[-1] == f"as a template: {found.template!r}"


def test_the_same_seed_finds_the_same_text(backbone) -> None:
    one, other = (harden(tuned(backbone), backbone, ROWS[:12], ROWS, search=QUICK) for _ in range(2))
    assert one.texts == other.texts


def test_written_answers_are_searched_by_their_own_loss(backbone) -> None:
    prompt = tuned(backbone, task=Task("{prompt:3}review: {text}{prompt:2} is", " {label}"))
    found = harden(prompt, backbone, ROWS[:8], ROWS, search=Search(2, 4, 2, 10))
    assert found.table.column("prompt") == [NONE, TEXT, HARDENED, SOFT]


def test_words_are_letters() -> None:
    assert [text for text in (" film", "ing", " a", "9th", "...", " two words") if is_word(text)] == [" film", "ing"]


def test_what_has_no_text_is_refused(backbone) -> None:
    task = Task("{prompt:3}review: {text}", verbalizer={"a": " a", "b": " b"})
    conditioned = Conditioned(torch.randn(3, backbone.width), 4)
    prompt = SoftPrompt(conditioned.base_PH, task, weights=conditioned.state_dict())
    with pytest.raises(PromptError, match=r"a conditioned prompt; expected a prompt with a template"):
        harden(prompt, backbone, ROWS, ROWS)
    with pytest.raises(PromptError, match="a prompt without a task"):
        harden(SoftPrompt(torch.randn(3, backbone.width)), backbone, ROWS, ROWS)
    with pytest.raises(ConfigError, match="max_steps=0; expected 1 or more"):
        Search(max_steps=0)


def test_the_command_prints_the_price(
    model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = tiny_backbone()
    write_csv(tmp_path / "rows.csv", [dict(row.values) for row in ROWS])
    prompt = SoftPrompt(torch.randn(5, backbone.width), TASK, str(model_directory), backbone.fingerprint)
    prompt.save(tmp_path / "prompt")
    command = ["harden", str(tmp_path / "prompt"), "--data", str(tmp_path / "rows.csv"), "--max-steps", "2"]
    assert main(command) == 2
    assert "names no training rows; expected rows to search with. Give --train" in capsys.readouterr().err
    given = [*command, "--train", str(tmp_path / "rows.csv"), "--search-rows", "8"]
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(given) == 0
    out = capsys.readouterr().out
    assert f"as a template: {found['template']!r}" in out
    assert [line.split("  ")[0] for line in out.splitlines()[1:5]] == [NONE, TEXT, HARDENED, SOFT]
