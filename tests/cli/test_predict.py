"""`ptuning predict` answers texts and files, and writes answers beside the rows' own columns."""

import csv
import dataclasses
import datetime
import json
from pathlib import Path

import datasets
import pytest
import torch
from conftest import write_csv
from families import tiny_backbone

from ptuning.cli.main import main
from ptuning.data import read_rows
from ptuning.data.task import Task
from ptuning.prompts.soft_prompt import SoftPrompt

LABELS = {"negative": " negative", "positive": " positive"}
ROWS = [{"id": str(i), "text": f'film {i}, "good"', "label": "?"} for i in range(3)]


@pytest.fixture
def prompts(tmp_path: Path, model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a classifier's prompt, a writer's, and rows."""
    monkeypatch.chdir(tmp_path)
    backbone, drawn = tiny_backbone(), torch.randn(2, tiny_backbone().width)
    for name, task in (
        ("labels", Task("{prompt:2}{text}", verbalizer=LABELS)),
        ("words", Task("{prompt:2}{text} is", " {x}")),
    ):
        SoftPrompt(drawn, task, str(model_directory), backbone.fingerprint).save(tmp_path / name)
    write_csv(tmp_path / "rows.csv", ROWS)
    return tmp_path


def test_several_texts_are_answered_in_order(prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "labels", "--input", "a film", "--input", "two hours", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert main(["predict", "labels", "--input", "two hours"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"{answers[1]['label']} {answers[1]['probabilities'][answers[1]['label']]:.3f}"
    assert len(answers) == 2


@pytest.mark.parametrize("name", ["answers.csv", "answers.tsv", "answers.jsonl"])
@pytest.mark.parametrize("more", [[], ["--id", "id"]])
def test_rows_are_written_with_their_answers(
    prompts: Path, name: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "labels", "--data", "rows.csv", "--output", name, *more]) == 0
    assert capsys.readouterr().out == f"saved: {name}, 3 rows\n"
    with Path(name).open(newline="") as file:
        if name.endswith("jsonl"):
            written = list(map(json.loads, file))
            assert all(sum(each.pop("probabilities").values()) == pytest.approx(1) for each in written)
        else:
            written = list(csv.DictReader(file, delimiter="\t" if name.endswith("tsv") else ","))
            assert all(0.5 <= float(each.pop("probability")) <= 1 for each in written)
    answer = "label" if more else "predicted_label"
    assert {each.pop(answer) for each in written} <= set(LABELS)
    assert written == ([{"id": row["id"]} for row in ROWS] if more else ROWS)


def test_cells_are_separated_as_in_the_rows_own_file(prompts: Path) -> None:
    Path("own.csv").write_text('id;text\n1;"a; b"\n2;plain, and dull\n')
    assert main(["predict", "labels", "--data", "own.csv", "--output", "answers.csv", "--id", "id"]) == 0
    assert Path("answers.csv").read_text().splitlines()[0] == "id;label;probability"
    Path("tabs.csv").write_text('id\ttext\n1\t"a ""quoted"" film"\n')
    assert main(["predict", "labels", "--data", "tabs.csv", "--output", "tabbed.csv"]) == 0
    assert read_rows("tabbed.csv", "test", ["text"])[0].values["text"] == 'a "quoted" film'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_kept(prompts: Path, encoding: str) -> None:
    Path("own.csv").write_text("text\nein schöner Film\n", encoding=encoding)
    for name in ("answers.csv", "answers.tsv"):
        assert main(["predict", "labels", "--data", "own.csv", "--output", name]) == 0
    assert Path("answers.csv").read_bytes()[:3] == "text".encode(encoding)[:3]
    assert Path("answers.tsv").read_bytes()[:3] == b"tex"


def test_tsv_is_written_as_it_is_read(prompts: Path) -> None:
    texts = ['"a quoted" film', "two\nlines\tand a tab", 'a "']
    Path("own.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    assert main(["predict", "labels", "--data", "own.jsonl", "--output", "answers.tsv"]) == 0
    found = [row.values["text"] for row in read_rows("answers.tsv", "test", ["text"])]
    assert found == ['"a quoted" film', "two lines and a tab", 'a "']


@pytest.mark.parametrize("name", ["answers.csv", "answers.jsonl"])
def test_rows_with_columns_of_their_own_are_written_whole(prompts: Path, name: str) -> None:
    rows = [{"text": "a film", "probability": "p", "probabilities": "q"}, {"text": "x", "label": "l", "note": "n"}]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["predict", "labels", "--data", "rows.jsonl", "--output", name]) == 0
    with Path(name).open(newline="") as file:
        written = list(csv.DictReader(file)) if name.endswith("csv") else list(map(json.loads, file))
    own = [{key: value for key, value in each.items() if value and key[:10] != "predicted_"} for each in written]
    assert own == rows
    of_answers = {key for each in written for key in each} - {key for row in rows for key in row}
    assert of_answers == {"predicted_label", f"predicted_{'probability' if name.endswith('csv') else 'probabilities'}"}


def test_an_answer_is_called_as_the_prompt_learnt_it(prompts: Path) -> None:
    prompt = SoftPrompt.load("labels")
    task = Task("{prompt:2}{text}", "{department}", LABELS)
    dataclasses.replace(prompt, task=task).save("tickets")
    assert main(["predict", "tickets", "--data", "rows.csv", "--output", "answers.csv", "--id", "id"]) == 0
    assert Path("answers.csv").read_text().splitlines()[0] == "id,department,probability"


def test_dates_are_written_as_text(prompts: Path) -> None:
    datasets.Dataset.from_dict({"text": ["x"], "day": [datetime.date(2026, 1, 2)]}).to_parquet("rows.parquet")
    assert main(["predict", "labels", "--data", "rows.parquet", "--output", "answers.jsonl"]) == 0
    assert json.loads(Path("answers.jsonl").read_text())["day"].startswith("2026-01-02")


def test_new_lines_of_an_answer_are_kept(
    prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "ptuning.inference.prompted_lm.PromptedLM.generate", lambda self, rows, **o: ["a\nb"] * len(rows)
    )
    assert main(["predict", "words", "--input", "x"]) == 0
    assert capsys.readouterr().out == "a\nb\n"
    assert main(["predict", "words", "--data", "rows.csv"]) == 0
    assert capsys.readouterr().out == "a b\n" * 3
    assert main(["predict", "words", "--data", "rows.csv", "--output", "written.jsonl"]) == 0
    assert [json.loads(line)["x"] for line in Path("written.jsonl").read_text().splitlines()] == ["a\nb"] * 3


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--output", "answers.xlsx"], r"--output answers.xlsx; expected a file of .csv, .tsv, .jsonl"),
        (["--output", "./rows.csv"], r"--output rows.csv, the rows' own file; expected another file"),
        (["--id", "id"], r"--id without --output; expected both"),
        (
            ["--output", "a.csv", "--id", "number"],
            r"--id number: row 0 has no such column; expected one of id, text, label",
        ),
    ],
)
def test_what_cannot_be_written_is_told(
    prompts: Path, given: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "labels", "--data", "rows.csv", *given]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(f"ptuning: {told}")
    assert not Path("a.csv").exists()


def test_an_inspection_on_the_training_rows_says_so(prompts: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompt = SoftPrompt.load("labels")
    dataclasses.replace(prompt, training={"data": {"train": "./rows.csv"}}).save("own")
    write_csv(prompts / "rows.csv", [{**row, "label": "positive"} for row in ROWS])
    write_csv(prompts / "others.csv", [{**row, "label": "positive"} for row in ROWS])
    assert main(["inspect", "own", "--data", "rows.csv"]) == 0
    assert "the prompt was trained on rows.csv: other rows would say more about it" in caplog.text
    caplog.clear()
    assert main(["inspect", "own", "--data", "others.csv"]) == 0
    assert "trained on" not in caplog.text
