"""A whole distillation: the student learns what the teacher says; what is done is kept; mistakes are told."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import review_rows, write_csv

import ptuning
from ptuning.comparison import Writing
from ptuning.config import DistillationConfig
from ptuning.data import Row
from ptuning.distillation import run
from ptuning.distillation.long_text import LongText
from ptuning.distillation.report import Distillation
from ptuning.distillation.teacher import Teacher
from ptuning.errors import ConfigError, DataError, TrainingError
from ptuning.forward import ReadOptions
from ptuning.model import Backbone
from ptuning.training import Interrupted

ROWS = {"train": review_rows(24), "validation": review_rows(8, 40), "test": review_rows(12, 60)}
SIDES = ["no text", "the text", "the text, cut", "fewer demonstrations", "distilled prompt", "tuned prompt"]


def config_in(directory: Path, **settings: Any) -> DistillationConfig:
    small = {
        "model.name_or_path": "tiny-llama",
        "model.dtype": "float32",
        "data.template": "{prompt:40}review: {text}\nsentiment:",
        "data.verbalizer": {"negative": " negative", "positive": " positive"},
        "train.output_dir": str(directory / "distilled"),
        "train.max_steps": 8,
        "train.eval_steps": 4,
        "distill.demonstrations": 4,
        "distill.text": "Is the film liked?\n\n",
    }
    return DistillationConfig.from_settings(small | {name.replace("__", "."): each for name, each in settings.items()})


def distilled(config: DistillationConfig, backbone: Backbone, rows: Any = None) -> Distillation:
    return ptuning.distill(config, rows=rows or ROWS, backbone=backbone, verbose=False)


def divergence_of(found: Distillation, name: str) -> float:
    return float(next(each["KL"] for each in found.table if each["side"] == name))


def test_the_student_comes_nearer_to_the_teacher_than_the_words_alone(backbone: Backbone, tmp_path: Path) -> None:
    found = distilled(config_in(tmp_path, train__max_steps=60, train__learning_rate=0.05), backbone)
    assert [each["side"] for each in found.table] == SIDES
    assert divergence_of(found, "the text") == pytest.approx(0, abs=1e-5)
    assert divergence_of(found, "distilled prompt") < 0.5 * divergence_of(found, "no text")
    assert divergence_of(found, "distilled prompt") < divergence_of(found, "the text, cut")
    by_name = {each["side"]: each for each in found.table}
    assert by_name["the text"]["agreement"] == 1
    assert by_name["the text"]["tokens"] > by_name["distilled prompt"]["tokens"] > by_name["no text"]["tokens"]
    assert by_name["the text"]["cache kB"] > by_name["distilled prompt"]["cache kB"] > 0
    written = json.loads((tmp_path / "distilled" / "distillation.json").read_text())
    assert written == json.loads(json.dumps(found.as_dict()))
    assert found.sentence == found.lines()[0] == written["sentence"]


def test_the_prompt_is_one_like_any_other(backbone: Backbone, tmp_path: Path) -> None:
    found = distilled(config_in(tmp_path, distill__baselines=False), backbone)
    assert [each["side"] for each in found.table] == ["no text", "the text", "distilled prompt"]
    saved = ptuning.SoftPrompt.load(tmp_path / "distilled")
    assert torch.equal(saved.embeddings_PH, found.prompt.embeddings_PH)
    lm = ptuning.PromptedLM(backbone, {"it": saved})
    answers = [each.label for each in lm.classify([{"text": row["text"]} for row in ROWS["test"]], prompt="it")]
    assert answers == list(next(each for each in found.sides if each.side.name == "distilled prompt").answers)


def test_a_row_of_the_text_is_read_without_itself(backbone: Backbone, tmp_path: Path) -> None:
    config = config_in(tmp_path)
    rows = [Row(each, f"row {i}") for i, each in enumerate(ROWS["train"])]
    text = LongText(config.data.task, "which?\n", rows[:3])
    assert rows[1].values["text"] in text.text()
    assert rows[1].values["text"] not in text.text(without=rows[1])
    assert rows[0].values["text"] in text.text(without=rows[1])
    assert text.text(without=rows[5]) == text.text()

    teacher = Teacher(backbone, text, Writing(4), 300, ReadOptions(batch_size=2))
    answered = teacher.answered(rows[:6])
    targets = teacher.targets(answered)
    for i, row in enumerate(answered):  # each by itself, with the text that is meant for it
        alone = LongText(config.data.task, "which?\n", [each for j, each in enumerate(rows[:3]) if j != i])
        one = Teacher(backbone, alone, Writing(4), 300)
        assert one.answered([rows[i]])[0].values == row.values
        expected, own = one.targets([row]), targets.of_rows([i])
        dense = [torch.zeros(1, 5000).scatter(1, each.ids_NK, each.log_probs_NK.exp()) for each in (own, expected)]
        torch.testing.assert_close(*dense, rtol=1e-4, atol=1e-5)


def test_the_same_call_goes_on_and_ends_the_same(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distilled(config_in(tmp_path / "whole"), backbone)
    asked = list[str]()
    targets = Teacher.targets

    def counted(self: Teacher, rows: Any, *more: Any) -> Any:
        asked.append(rows[0].where)
        return targets(self, rows, *more)

    monkeypatch.setattr(Teacher, "targets", counted)
    train_with = run.train_with

    def stopped(*given: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train_with", stopped)
    config = config_in(tmp_path / "again")
    with pytest.raises(Interrupted, match=r"interrupted; what is done is kept in .*: the same call goes on from there"):
        distilled(config, backbone)
    monkeypatch.setattr(run, "train_with", train_with)
    again = distilled(config, backbone)
    assert len(asked) == 3  # once a split
    assert torch.equal(again.prompt.embeddings_PH, whole.prompt.embeddings_PH)
    for name in ("agreement", "KL", "score", "retention"):
        assert again.table.column(name) == whole.table.column(name)


def test_written_answers_are_the_teachers_where_rows_bring_none(backbone: Backbone, tmp_path: Path) -> None:
    rows = {split: [{"text": each["text"]} for each in own] for split, own in ROWS.items()}
    settings = {"data__verbalizer": None, "distill__max_new_tokens": 5, "distill__demonstrations": 0}
    found = distilled(config_in(tmp_path, **settings), backbone, rows)
    assert [each["side"] for each in found.table] == ["no text", "the text", "the text, cut", "distilled prompt"]
    by_name = {each.side.name: each for each in found.sides}
    assert by_name["the text"].score_N.tolist() == [1.0] * len(ROWS["test"])
    assert found.about["measured on"].endswith("their expected answers are the teacher's own, since they bring none")
    with pytest.raises(DataError, match=r"distill.answers: rows with rows without label"):
        distilled(config_in(tmp_path / "b", **settings, distill__answers="rows"), backbone, rows)


def test_files_without_answers_are_read_too(backbone: Backbone, tmp_path: Path) -> None:
    files = {
        f"data__{split}": str(write_csv(tmp_path / f"{split}.csv", [{"text": each["text"]} for each in own]))
        for split, own in ROWS.items()
    }
    config = config_in(tmp_path, data__verbalizer=None, distill__max_new_tokens=3, distill__demonstrations=0, **files)
    found = ptuning.distill(config, backbone=backbone, verbose=False)
    assert "since they bring none" in found.about["measured on"]


def test_what_a_blank_line_ends_the_student_ends(backbone: Backbone, tmp_path: Path) -> None:
    config = config_in(tmp_path, data__verbalizer=None, distill__max_new_tokens=4)
    assert config.distill.stop_strings == ("\n\n",)
    rows = [Row({**each, "label": " good"}, "row") for each in ROWS["train"][:3]]
    targets = Teacher(backbone, LongText(config.data.task, "x\n"), Writing(4, ("\n\n",)), 6).targets(rows)
    last = torch.tensor(targets.lengths).cumsum(0) - 1
    assert targets.ids_NK[last, 0].tolist() == [backbone.tokenizer.eos_token_id] * 3
    assert targets.log_probs_NK[last, 0].tolist() == [0.0] * 3


def test_a_directory_of_something_else_is_left_alone(backbone: Backbone, tmp_path: Path) -> None:
    config = config_in(tmp_path)
    directory = tmp_path / "distilled"
    directory.mkdir()
    (directory / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match=r"distilled holds something else than a distillation"):
        distilled(config, backbone)
    assert [each.name for each in directory.iterdir()] == ["thesis.txt"]


def test_another_text_is_another_distillation(backbone: Backbone, tmp_path: Path) -> None:
    distilled(config_in(tmp_path, distill__baselines=False), backbone)
    with pytest.raises(TrainingError, match=r"was made with another text, base, rows or settings"):
        distilled(config_in(tmp_path, distill__text="Something else\n"), backbone)
    with pytest.raises(TrainingError, match=r"was made with another text, base, rows or settings"):
        distilled(config_in(tmp_path, distill__baselines=False, distill__start="first_tokens"), backbone)
    path = tmp_path / "distilled" / "teacher-train.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(TrainingError, match=r"teacher-train.safetensors is broken"):
        distilled(config_in(tmp_path, distill__baselines=False), backbone)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"distill__text": None, "distill__demonstrations": 0}, "no distill.text, distill.text_file or"),
        ({"distill__text_file": "a.txt"}, "distill.text and distill.text_file; expected one of them"),
        ({"distill__top_k": 0}, "distill.top_k: 0; expected from 1"),
        ({"prompt__encoder": "conditioned"}, "prompt.encoder: conditioned in a distillation"),
        ({"data__template": "{prompt:2}{text}{prompt:2}"}, "data.template with 2 slots in a distillation"),
        ({"data__answer": "{a} {b}", "data__verbalizer": None}, "data.answer: '{a} {b}' in a distillation"),
    ],
)
def test_contradictions_are_told(settings: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told.replace("{", "\\{")):
        config_in(tmp_path, **settings)


def test_a_text_that_does_not_fit_is_told(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a text of .* tokens in front of rows of up to .*the model's positions"):
        distilled(config_in(tmp_path, distill__text="word " * 5000), backbone)
    missing = config_in(tmp_path, distill__text=None, distill__text_file=str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match=r"distill.text_file: .*none.txt"):
        distilled(missing, backbone)
    assert not (tmp_path / "distilled" / "run").exists()


def test_its_warnings_are_about_the_text_alone(
    backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        distilled(config_in(tmp_path), backbone)
    assert "the prompt is not shown to be better" not in caplog.text
