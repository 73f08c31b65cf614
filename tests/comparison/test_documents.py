"""The way `documents`: the text that it builds, what chooses, and facts that stand in documents alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_backbone
from small import ROWS, TEMPLATE, config_in, job, little, rows

import ptuning
from ptuning.comparison.documents import Documents
from ptuning.comparison.prompting import ZeroShot
from ptuning.comparison.protocol import Job, SkippedError, accuracy
from ptuning.comparison.reading import label_scores
from ptuning.comparison.weights import AllWeights
from ptuning.data import Row, Task
from ptuning.errors import DataError, TrainingError
from ptuning.model import Backbone

PASSAGES = ("film 61 is dull", "film 62 was good", "the plot of 62", "a good film", "of {text} and <s>")


def with_passages(given: Job, *numbers: int, passages: Any = PASSAGES) -> Job:
    """The same with documents, of which so many may stand in a text."""
    return replace(given, passages=passages, effort=replace(given.effort, passages=numbers))


def test_the_nearest_passages_stand_in_front_of_a_row_the_nearest_last(backbone: Backbone, tmp_path: Path) -> None:
    given = with_passages(little(job(backbone, tmp_path)), 2)
    fitted, row = Documents().fit(given), Row({"text": "the film 62 was bright"}, "row")
    by_words = replace(given, passages=(*PASSAGES[:2], "a plot"))
    shown = Documents().fit(with_passages(by_words, 2)).filled([row])[0].values["demonstrations"]
    assert shown.endswith("film 62 was good\n\n")
    assert shown.count("\n\n") == 2
    text = "".join([fitted.filled([row])[0].values["demonstrations"], TEMPLATE.partition("}")[2].format(**row.values)])
    task = Task("{whole}", verbalizer=given.task.verbalizer)
    expected = label_scores(backbone, task, [Row({"whole": text}, "row")])
    torch.testing.assert_close(fitted.label_scores([row]), expected, atol=1e-4, rtol=1e-4)
    assert fitted.extra_tokens > 5
    assert fitted.index_costs is not None


def test_validation_rows_choose_how_many_and_by_what(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, wanted = list[tuple[str, str]](), ("2", "hidden states")

    def judged(given: Job, fitted: Any) -> float:
        tried.append((fitted.chosen["passages"], fitted.chosen["by"]))
        return float(tried[-1] == wanted)

    monkeypatch.setattr(Job, "score", judged)
    given = with_passages(little(job(backbone, tmp_path)), 1, 2, 4, 8)
    assert Documents().fit(given).chosen == {"passages": "2", "by": "hidden states"}
    assert tried == [(number, by) for by in ("shared words", "hidden states") for number in ("1", "2", "4")]


def test_a_base_that_is_not_causal_finds_passages_by_words(tmp_path: Path) -> None:
    given = with_passages(little(job(tiny_backbone("t5"), tmp_path)), 1)
    assert Documents().fit(given).chosen == {"passages": "1", "by": "shared words"}


def test_passages_that_do_not_fit_are_told_and_long_ones_are_read_as_far_as_they_fit(tmp_path: Path) -> None:
    short = tiny_backbone("llama", max_position_embeddings=120)
    given = with_passages(little(job(short, tmp_path)), 1, 2, passages=("good " * 60, "a film " * 10))
    assert Documents().fit(given).label_scores(rows("test")).shape == (12, 2)
    with pytest.raises(DataError, match=r"passages of \d+ tokens; expected at most .* for one"):
        Documents().fit(with_passages(given, 1, passages=("good " * 200, "bad " * 200)))


def test_it_is_skipped_without_documents(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(SkippedError, match=r"no compare.documents; expected a folder of texts. Name one in the config"):
        Documents().require(job(backbone, tmp_path))
    config = config_in(tmp_path, compare__ways=["zero-shot", "documents"])
    comparison = ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False)
    assert comparison.left_out["documents"].startswith("skipped: no compare.documents")


def test_other_documents_are_another_comparison(backbone: Backbone, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "films.txt").write_text("Film 62 was good.")
    config = config_in(tmp_path, compare__ways=["zero-shot"], compare__documents=str(folder))
    ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False)
    (tmp_path / "documents").rename(tmp_path / "moved")  # known by their content
    moved = config_in(tmp_path, compare__ways=["zero-shot"], compare__documents=str(tmp_path / "moved"))
    ptuning.compare(moved, rows=ROWS, backbone=backbone, verbose=False)
    (tmp_path / "moved" / "more.txt").write_text("Film 63 was bad.")
    with pytest.raises(TrainingError, match=r"holds a comparison with other compare.documents"):
        ptuning.compare(moved, rows=ROWS, backbone=backbone, verbose=False)
    with pytest.raises(DataError, match=r"documents does not exist"):
        ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False)


def test_facts_that_stand_in_documents_alone_are_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base that reads words, rows that name a film alone, and documents that say how each film was."""
    kinds = [("bright", "positive"), ("dull", "negative")]

    def told(first: int, count: int) -> list[tuple[str, str, str]]:
        return [
            (f"film {i}", f"film {i} was {kinds[i * i % 7 % 2][0]}", kinds[i * i % 7 % 2][1])
            for i in range(first, first + count)
        ]

    monkeypatch.setattr(AllWeights, "rate", 0.01)
    reading = [Row({"text": f"{fact}\n\nreview: {film}", "label": label}, film) for film, fact, label in told(100, 64)]
    given = little(job(tiny_backbone(), tmp_path, train__max_steps=60))
    words = replace(given.config.data, template="{prompt:4}{text}\nsentiment:")
    base = replace(given, config=replace(given.config, data=words), train=reading, validation=reading[:16])
    model = AllWeights().fit(base).weights.model
    backbone = Backbone.of(model, given.backbone.tokenizer, "reader")

    asked = [Row({"text": film, "label": label}, film) for film, _, label in told(200, 40)]
    passages = [fact for _, fact, _ in told(200, 40)]
    given = replace(with_passages(given, 1, 2, 4, passages=passages), backbone=backbone, validation=asked[:20])
    fitted = Documents().fit(given)
    assert fitted.chosen == {"passages": "1", "by": "shared words"}
    assert accuracy(fitted, given.task, asked[20:]) == 1
    assert accuracy(ZeroShot().fit(given), given.task, asked[20:]) < 0.8
