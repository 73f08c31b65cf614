"""`ptuning evaluate` prints what was measured, for people and as JSON, and writes each row's prediction."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import review_rows, write_csv

from ptuning.cli import main as cli
from ptuning.data.task import Task
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.prompts.soft_prompt import SoftPrompt

WITHOUT, WITH = "the same words, no soft prompt", "soft prompt"
LABELS = {"negative": " negative", "positive": " positive", "neutral": " film"}
CHOOSES = Task("{prompt:4}review: {text}\nsentiment:", verbalizer=LABELS)
WRITES = Task("{prompt:4}review: {text}\nsentiment:", answer=" {label}")


def read(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:  # a generated text may hold what `splitlines` takes for the end of a line
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def made_prompt(backbone, model_directory):
    embeddings_PH = torch.randn(4, backbone.width, generator=torch.Generator().manual_seed(0))
    return SoftPrompt(embeddings_PH, CHOOSES, str(model_directory), fingerprint=backbone.fingerprint)


@pytest.fixture
def evaluated(made_prompt, tmp_path: Path, capsys):
    """Evaluates a prompt for the task on rows, 9 unless told otherwise, and gives what is printed."""

    def printed(task: Task, *options: str, rows: list[dict[str, str]] | None = None) -> str:
        prompt = dataclasses.replace(made_prompt, task=task).save(tmp_path / "prompt")
        data = write_csv(tmp_path / "rows.csv", rows or review_rows(9))
        capsys.readouterr()
        status = cli.main(["evaluate", str(prompt), "--data", str(data), *options])
        out, err = capsys.readouterr()
        assert status == 0, err
        return out

    return printed


def test_classes_are_printed_for_both_sides(evaluated):
    sentences, _, rest = evaluated(CHOOSES, "--baseline").partition("\n\n")
    assert sentences.startswith("The prompt is not shown to be better than the same words without it: accuracy 0.")
    lines = rest.splitlines()
    heads = ["", "", "rows", "accuracy", "95 % interval", "loss a token", "macro-F1", ""]
    assert [each.strip() for each in lines[0].split("|")] == heads
    assert lines[2].startswith(f"| {WITHOUT} | 9 ")
    for name in (WITHOUT, WITH):
        part = lines[lines.index(f"{name}:") + 1 :]
        assert part[0].startswith("macro-F1 0.")
        assert part[1].split() == ["label", "precision", "recall", "F1", "rows"]
        assert [line.split()[0] for line in part[2:5]] == list(LABELS)
        assert [line.split()[-1] for line in part[2:5]] == ["4", "5", "0"]
        assert part[5].split()[-3:] == ["1", "2", "3"]


def test_json_has_the_scores_of_each_class(evaluated):
    told = json.loads(evaluated(CHOOSES, "--json"), parse_constant=pytest.fail)["results"][WITH]
    assert told["confusion"]["labels"] == list(told["per_class"]) == list(LABELS)
    assert sum(map(sum, told["confusion"]["counts"])) == told["num_rows"] == 9
    assert told["per_class"]["neutral"]["recall"] is None
    assert 0 <= told["macro_f1"] <= 1


def test_predictions_are_those_that_the_metrics_count(evaluated, tmp_path):
    path = tmp_path / "predictions.jsonl"
    told = json.loads(evaluated(CHOOSES, "--json", "--predictions", str(path)))["results"][WITH]
    records = read(path)
    assert [record["row"] for record in records] == [f"{tmp_path}/rows.csv line {i}" for i in range(2, 11)]
    for i, label in enumerate(LABELS):
        own = [record["prediction"] for record in records if record["label"] == label]
        assert told["confusion"]["counts"][i] == [own.count(other) for other in LABELS]
    assert told["accuracy"] == pytest.approx(sum(record["correct"] for record in records) / 9)
    own = [record["probabilities"][record["label"]] for record in records]
    assert told["label_log_loss"] == pytest.approx(-sum(map(torch.log, torch.tensor(own))).item() / 9, rel=1e-4)
    assert told["loss"] == pytest.approx(-sum(record["log_prob"] for record in records) / 9, rel=1e-4)


def test_written_answers_are_generated_and_compared(evaluated, made_prompt, model_directory, tmp_path):
    lm = PromptedLM.from_pretrained(model_directory, {"p": dataclasses.replace(made_prompt, task=WRITES)}, device="cpu")
    rows = [{"text": f"{i} the film was good", "label": "bad"} for i in range(4)]
    rows[0]["label"] = lm.generate(rows[:1], max_new_tokens=6)[0].strip()  # so that one answer is right
    assert rows[0]["label"]
    path, options = tmp_path / "predictions.jsonl", ["--max-new-tokens", "6", "--baseline", "--device", "cpu"]
    results = json.loads(evaluated(WRITES, "--json", "--predictions", str(path), *options, rows=rows))["results"]
    expected = lm.generate(rows, max_new_tokens=6)
    records = read(path)
    assert [record["prediction"] for record in records] == expected
    assert [record["answer"] for record in records] == [f" {row['label']}" for row in rows]
    assert results[WITH]["written"]["exact_match"] == 0.25
    assert 0.25 <= results[WITH]["written"]["character_f1"] < 1
    assert results[WITHOUT]["written"] != results[WITH]["written"]
    assert "confusion" not in results[WITH]
    assert f"{WITH}: exact match 0.250, character F1 0." in evaluated(WRITES, *options, rows=rows)


def test_written_answers_have_room_for_the_longest_expected_one(evaluated, monkeypatch):
    seen = []
    real = PromptedLM.generate

    def generate(self, *arguments, max_new_tokens, **options):
        seen.append(max_new_tokens)
        return real(self, *arguments, max_new_tokens=max_new_tokens, **options)

    monkeypatch.setattr(PromptedLM, "generate", generate)
    rows = [{"text": "a film", "label": label} for label in ("good", "the very dull plot of a film")]
    evaluated(WRITES, rows=rows)
    (num_new,) = seen
    assert num_new >= 8  # words and the end of the text


def test_model_that_cannot_generate_is_evaluated_without(evaluated, monkeypatch, caplog):
    monkeypatch.setattr("ptuning.model.causal.CausalBackbone.generates_from_embeddings", False)
    out = evaluated(WRITES)
    assert "accuracy" in out
    assert "exact match" not in out
    assert "cannot generate from embeddings" in caplog.text


def test_predictions_that_cannot_be_written_are_refused_before_the_model_is_loaded(made_prompt, tmp_path, capsys):
    prompt = made_prompt.save(tmp_path / "prompt")
    for name in ("file", "rows.csv"):
        (tmp_path / name).write_text("")
    data, predictions = str(tmp_path / "rows.csv"), str(tmp_path / "file" / "p")
    assert cli.main(["evaluate", str(prompt), "--data", data, "--predictions", predictions]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"ptuning: {tmp_path}/file/p cannot be written")
    assert err.count("\n") == 1
