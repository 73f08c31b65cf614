"""`ptuning init` proposes a config that trains, for rows that nobody has described."""

import gzip
import json
from pathlib import Path

import pytest

from ptuning.cli.main import main
from ptuning.config.run import RunConfig

TOPICS = ("cancel", "cancel booking", "refund", "invoice", "other")


@pytest.fixture
def tickets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spreadsheet's CSV: a byte-order mark, semicolons, an id, a date, two texts and a label."""
    monkeypatch.chdir(tmp_path)
    lines = ["id;date;subject;body;topic"]
    for i in range(60):
        lines.append(f'{i};2026-01-{i % 28 + 1:02};"the {i}th; subject";please help me {i};{TOPICS[i % 5]}')
    path = tmp_path / "tickets.csv"
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    return path


def test_labels_that_look_like_codes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["text,label", *(f"a question of number {i},{'HUM' if i % 2 else 'LOC'}" for i in range(40))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    assert main(["init", str(tmp_path / "rows.csv"), "--output", str(tmp_path / "rows.yaml")]) == 0
    assert "labels that look like codes (LOC, HUM): write words that say what they mean" in capsys.readouterr().out


def test_labels_and_texts_are_found(tickets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "tickets.csv", "--model", "base"]) == 0
    assert capsys.readouterr().out == (
        "60 rows; shown: subject, body; asked for: topic, one of 5 labels\n"
        "saved: tickets.yaml\nlook at it, then: ptuning train --config tickets.yaml\n"
    )
    config = RunConfig.from_yaml("tickets.yaml")
    assert (config.model.name_or_path, config.data.train, config.train.output_dir) == (
        "base",
        "tickets.csv",
        "runs/tickets",
    )
    assert config.data.template == "{prompt:20}subject: {subject}\nbody: {body}\nTopic:"
    assert config.data.answer == "{topic}"
    assert config.data.verbalizer == {label: f" {label}." for label in sorted(TOPICS)}
    text = Path("tickets.yaml").read_text()
    assert '"refund": " refund."  # 12 rows' in text
    assert text.startswith("# ptuning train --config tickets.yaml\n")


def test_a_proposed_config_trains(tickets: Path, model_directory: Path) -> None:
    assert main(["init", "tickets.csv", "--model", str(model_directory), "--output", "mine.yaml"]) == 0
    assert Path("mine.yaml").read_text().startswith("# ptuning train --config mine.yaml\n")
    short = ["--train.max_steps=2", "--model.dtype=float32", "--model.device=cpu"]
    assert main(["train", "--config", "mine.yaml", *short]) == 0
    assert json.loads(Path("runs/tickets/metrics.json").read_text())["training"]["rows"] == 48


def test_answers_that_do_not_come_again_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"title": f"a film about {i} goats", "slug": f"goats-{i}"} for i in range(20)]
    Path("slugs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["init", "slugs.jsonl"]) == 0
    config = RunConfig.from_yaml("slugs.yaml")
    assert (config.data.template, config.data.answer) == ("{prompt:20}{title}\nSlug:", " {slug}")
    assert config.data.verbalizer is None


def test_a_column_called_label_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["lang,text,label", *(f"{'en' if i % 2 else 'de'},some words {i},{'abc'[i % 3]}" for i in range(30))]
    Path("rows.csv").write_text("\n".join(lines))
    assert main(["init", "rows.csv"]) == 0
    config = RunConfig.from_yaml("rows.yaml")
    assert config.data.answer == "{label}"
    assert config.data.template == "{prompt:20}lang: {lang}\ntext: {text}\nLabel:"
    assert config.data.verbalizer == {"a": " a", "b": " b", "c": " c"}


@pytest.mark.parametrize(
    ("header", "row", "template", "answer"),
    [
        (
            "question,answer,source",
            "why is it {i},since {i} it is,{s}",
            "question: {question}\nsource: {source}\nAnswer:",
            None,
        ),
        ("prompt,text,label", "x {i},a film {i},{s}", "{text}\nLabel:", "{label}"),
        ("day,text,kind", "2026-01-0{d},two hours {i},{s}", "{text}\nKind:", "{kind}"),
        ("city,a{{b,country", "{c}town,x,{c}land", "{city}\nCountry:", None),
        ("text,kind", "電影{i}好看,{s}", "{text}\nKind:", "{kind}"),
        ("code,text,kind", "A{i},two hours {i},{s}", "{text}\nKind:", "{kind}"),
    ],
)
def test_columns_are_shown_or_asked_for_as_they_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str, row: str, template: str, answer: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [row.format(i=i, s="ab"[i % 2], c=chr(97 + i), d=i % 3) for i in range(20)]
    Path("rows.csv").write_text("\n".join([header.replace("{{", "{"), *lines]), encoding="utf-8")
    assert main(["init", "rows.csv"]) == 0
    config = RunConfig.from_yaml("rows.yaml")
    assert config.data.template == "{prompt:20}" + template
    assert (config.data.answer if config.data.verbalizer else None) == answer


def test_rows_without_a_label_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with gzip.open("rows.csv.gz", "wt") as file:
        file.write("\n".join(["text,kind", *(f"some words {i},{['a', 'b', ''][i % 3]}" for i in range(30))]))
    assert main(["init", "rows.csv.gz"]) == 0
    assert "10 rows have no kind: remove them before training\nsaved: rows.yaml" in capsys.readouterr().out
    config = RunConfig.from_yaml("rows.yaml")
    assert (config.data.verbalizer, config.train.output_dir) == ({"a": " a", "b": " b"}, "runs/rows")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["tickets.csv", "--output", "tickets.csv"], "tickets.csv exists; expected a new file"),
        (["none.csv"], "data file none.csv does not exist"),
        (["one.csv"], "rows with the columns text; expected a text and an answer"),
        (["two.csv"], "rows with the columns text (and 'a:b', which no template can name); expected a text and an"),
    ],
)
def test_what_cannot_be_proposed_is_told(
    tickets: Path, given: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("one.csv").write_text("text\na film\n")
    Path("two.csv").write_text("text,a:b\na film,good\n")
    before = tickets.read_bytes()
    assert main(["init", *given]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"ptuning: {told}")
    assert err.count("\n") == 1
    assert tickets.read_bytes() == before
