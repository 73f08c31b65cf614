"""What ways forget: the loss of a general text, before and after, where weights change."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from small import ROWS, config_in, job, little

import ptuning
from ptuning.comparison import run
from ptuning.comparison.general_text import GENERAL_TEXT
from ptuning.comparison.reading import text_ids, text_loss
from ptuning.comparison.weights import AllWeights, LastBlock, LoRA
from ptuning.errors import DataError, TrainingError
from ptuning.model import Backbone

TEXT = "the film was good and the plot was dull\n\n\na review of the capital\n"


def test_the_loss_is_that_of_plain_transformers(any_backbone: Backbone) -> None:
    ids, losses, num_tokens = text_ids(any_backbone, GENERAL_TEXT), 0.0, 0
    for piece in ids:
        ids_1T = torch.tensor([piece])
        with torch.no_grad():
            losses += float(any_backbone.model(input_ids=ids_1T, labels=ids_1T).loss) * (len(piece) - 1)
        num_tokens += len(piece) - 1
    assert text_loss(any_backbone.model, ids) == pytest.approx(losses / num_tokens, rel=1e-5)


def test_a_text_is_read_by_paragraphs_in_pieces_that_fit(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [backbone.tokenizer(each)["input_ids"] for each in TEXT.replace("\n\n\n", "\n\n").strip().split("\n\n")]
    assert text_ids(backbone, TEXT) == whole
    monkeypatch.setattr("ptuning.comparison.reading._PIECE", 4)
    pieces = text_ids(backbone, TEXT)
    assert {len(piece) for piece in pieces} <= {2, 3, 4}
    monkeypatch.setattr("ptuning.comparison.reading._MOST_TOKENS", 1)
    assert text_ids(backbone, TEXT) == [piece for piece in pieces if piece[0] in whole[0]][: len(whole[0]) // 4]
    assert 300 < len(GENERAL_TEXT.split()) < 900


@pytest.mark.parametrize("way", [LoRA(), LastBlock(), AllWeights()], ids=lambda way: way.name)
def test_weights_that_were_trained_hard_forget(
    way: LoRA | LastBlock | AllWeights, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(way), "rate", 0.03)
    ids = text_ids(backbone, TEXT)
    before = text_loss(backbone.model, ids)
    fitted = way.fit(little(job(backbone, tmp_path, train__max_steps=20)))
    after = fitted.text_loss(ids)
    assert after is not None
    assert after == pytest.approx(text_loss(fitted.weights.model, ids))
    assert abs(after - before) > 0.01
    assert text_loss(backbone.model, ids) == before


def test_it_is_told_and_a_base_that_stays_forgets_exactly_nothing(backbone: Backbone, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    chosen = {"compare__ways": ["zero-shot", "output-layers", "lora"], "compare__general_text": str(text)}
    config = config_in(tmp_path, **chosen)
    comparison = ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False)
    told = comparison.as_dict()["ways"]
    for name in ("zero-shot", "output-layers"):
        assert told[name]["forgets"] == {
            **{"changes_the_base": False, "loss_before": None, "loss_after": None, "change": 0.0}
        }
    parts = [json.loads(file.read_text()) for file in comparison.directory.glob("lora/**/result.json")]
    before, after = zip(*(part["text_loss"] for part in parts), strict=True)
    assert set(before) == {text_loss(backbone.model, text_ids(backbone, TEXT))}
    assert told["lora"]["forgets"] == {
        **{
            "changes_the_base": True,
            "loss_before": pytest.approx(before[0]),
            "loss_after": pytest.approx(sum(after) / 2),
        },
        **{"change": pytest.approx(sum(after) / 2 - before[0])},
    }
    cells = {each["way"]: each["forgets"] for each in comparison.costs()}
    assert cells == {"zero-shot": "nothing", "output-layers": "nothing", "lora": f"{sum(after) / 2 - before[0]:+.3f}"}
    lines = list(csv.DictReader((comparison.directory / "comparison.csv").read_text().splitlines()))
    assert [float(line["forgets"]) for line in lines][:2] == [0, 0]
    assert float(lines[2]["forgets"]) == pytest.approx(sum(after) / 2 - before[0])
    assert '<td data-label="forgets">nothing</td>' in (comparison.directory / "comparison.html").read_text()
    text.write_text(f"{TEXT} good")
    with pytest.raises(TrainingError, match=r"holds a comparison with other compare\.general_text"):
        ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False)


def test_a_text_that_cannot_be_used_is_told(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "text.txt"
    config = config_in(tmp_path, compare__general_text=str(file))
    with pytest.raises(DataError, match=r"general_text: .*text.txt cannot be read .*; expected a file"):
        ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False)
    monkeypatch.setattr(run.Inputs, "load", lambda *given: pytest.fail("the model is loaded first"))
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\xff")
    for name, match in (("pipe", "is no regular file"), ("picture", "is not UTF-8 text")):
        broken = config_in(tmp_path, compare__general_text=str(tmp_path / f"{name}.txt"))
        with pytest.raises(DataError, match=rf"compare.general_text: .*{name}.txt {match}"):
            ptuning.compare(broken, rows=ROWS, backbone=backbone, verbose=False)
    monkeypatch.undo()
    file.write_text("\n \n\n")
    with pytest.raises(DataError, match=r"a general text without words; expected some sentences"):
        ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False)
    assert not Path(config.train.output_dir).exists()
