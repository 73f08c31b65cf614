"""`ptuning predict`."""

import argparse
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptuning.cli import predict_server
from ptuning.cli.arguments import load_model, one_row, positive, prompt_command
from ptuning.errors import ConfigError, DataError
from ptuning.files import require_writable, whole_file


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = prompt_command(commands, "predict", "answer a text, or every row of a file", run)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", action="append", metavar="TEXT", help="a text, for a template with one column; repeatable"
    )
    source.add_argument("--data", help="rows to answer, one answer per row")
    parser.add_argument(
        "--output", metavar="FILE", help="write the rows with their answers: .csv, .tsv or .jsonl (default: on stdout)"
    )
    parser.add_argument("--id", metavar="COLUMN", help="with --output: of the rows' own columns, write this one only")
    parser.add_argument("--max-new-tokens", type=positive, default=50, help="length of written answers (default: 50)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a written answer; repeatable")
    predict_server.add(parser)


def run(parsed: argparse.Namespace) -> None:
    """Prints or writes one answer per row."""
    output = _output(parsed)
    predict_server.require_together(parsed)
    if parsed.server is not None:
        with predict_server.client_of(parsed) as client:
            task, rows = client.task(parsed.name), _rows(parsed, client.columns(parsed.name))
            own = _own(parsed, rows) if output else []
            with predict_server.kept_answers(parsed, client, rows) as answers:
                _tell(parsed, task, own, answers)
        return
    lm = load_model(parsed)
    task, rows = lm.task("prompt"), _rows(parsed, lm.columns("prompt"))
    own = _own(parsed, rows) if output else []
    if task.is_classification:
        found = lm.classify(rows)
    else:
        found = lm.generate(rows, max_new_tokens=parsed.max_new_tokens, stop_strings=parsed.stop)
    _tell(parsed, task, own, [predict_server.plain(each) for each in found])


def _output(parsed: argparse.Namespace) -> Path | None:
    """The file to write, which can be written; None where answers are printed."""
    output = Path(parsed.output) if parsed.output else None
    if parsed.id is not None and not output:
        raise ConfigError("--id without --output", "both", "Name a file with --output")
    if output is None:
        return None
    if output.suffix not in _WRITERS:
        raise ConfigError(f"--output {output}", f"a file of {', '.join(_WRITERS)}", "Give it such an ending")
    require_writable(output)
    if parsed.data is not None and Path(parsed.data).exists() and output.exists() and output.samefile(parsed.data):
        raise ConfigError(f"--output {output}, the rows' own file", "another file", "Name a new one")
    return output


def _tell(
    parsed: argparse.Namespace, task: Any, own: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]
) -> None:
    """Prints the answers, or writes them beside what is written of the rows' own columns."""
    if task.is_classification:
        lines = [f"{each['label']} {each['probabilities'][each['label']]:.3f}" for each in answers]
    else:
        lines = [each["text"] for each in answers]
        lines = lines if len(lines) == 1 else [" ".join(text.split()) for text in lines]  # a row is a line
    if parsed.output:
        output, column = Path(parsed.output), _column(task)
        named = [{column if name in ("label", "text") else name: each[name] for name in each} for each in answers]
        _WRITERS[output.suffix](output, own, named, _delimiter(output, parsed.data), _encoding(output, parsed.data))
        lines = [f"saved: {output}, {len(answers):,} rows"]
    print(json.dumps({"answers": answers}) if parsed.json else "\n".join(lines))


def _rows(parsed: argparse.Namespace, columns: Sequence[str]) -> list[Any]:
    """The rows of --data, or those of --input."""
    if parsed.data is not None:
        from ptuning.data import read_rows

        return [row.values for row in read_rows(parsed.data, "test", columns)]
    return [one_row(text, columns) for text in parsed.input]


def _column(task: Any) -> str:
    """What answers are called in a file: the column that the prompt learnt, where it is one."""
    from ptuning.data import Template

    names = Template.parse(task.answer).field_names
    return names[0] if len(names) == 1 else "answer"


def _own(parsed: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is written of the rows' own columns."""
    if parsed.id is None:
        return [dict(row) for row in rows]
    missing = [i for i, row in enumerate(rows) if parsed.id not in row]
    if missing:
        received = f"--id {parsed.id}: row {missing[0]} has no such column"
        raise DataError(received, f"one of {', '.join(rows[missing[0]])}", "Correct it")
    return [{parsed.id: row[parsed.id]} for row in rows]


def _beside(own: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with their answers, under names that no row has: rows' own `label` stays beside `predicted_label`."""
    taken = {name for row in own for name in row}
    names = {name: f"predicted_{name}" if name in taken else name for answer in answers for name in answer}
    return [
        {**row, **{names[name]: value for name, value in answer.items()}}
        for row, answer in zip(own, answers, strict=True)
    ]


def _delimiter(output: Path, data: str | None) -> str:
    """What stands between cells: a tab in .tsv, else what stands there in the rows' own .csv file."""
    from ptuning.data import delimiter_of

    if output.suffix == ".tsv":
        return "\t"
    return delimiter_of(data) if data is not None and data.lower().endswith((".csv", ".csv.gz")) else ","


def _encoding(output: Path, data: str | None) -> str:
    """UTF-8; in .csv with the byte-order mark that the rows' own file has, without which spreadsheets misread it."""
    from ptuning.data import has_byte_order_mark

    is_marked = output.suffix == ".csv" and data is not None and has_byte_order_mark(data)
    return "utf-8-sig" if is_marked else "utf-8"


def _write_table(
    path: Path, own: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]], delimiter: str, encoding: str
) -> None:
    """Writes CSV or TSV: of a label's probabilities its own, under `probability`.

    TSV has no quotation marks, so that tabs and line breaks within a cell become spaces.
    """
    flat = []
    for answer in answers:
        cells = {name: value for name, value in answer.items() if name != "probabilities"}
        if "probabilities" in answer:
            cells["probability"] = f"{max(answer['probabilities'].values()):.6f}"
        flat.append(cells)
    records = _beside(own, flat)
    columns = dict.fromkeys(name for record in records for name in record)
    with whole_file(path) as beside, beside.open("w", newline="", encoding=encoding) as file:
        rows = [{name: name for name in columns}, *records]
        if path.suffix == ".tsv":
            file.writelines("\t".join(_cell(row.get(name)) for name in columns) + "\n" for row in rows)
        else:
            csv.DictWriter(file, columns, delimiter=delimiter).writerows(rows)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).translate(_SPACES)


def _write_lines(path: Path, own: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]], *_: str) -> None:
    """Writes JSONL: one object a row; what JSON has no type for, such as a date, as its text."""
    with whole_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(each, ensure_ascii=False, default=str) + "\n" for each in _beside(own, answers))


_SPACES = str.maketrans("\t\r\n", "   ")
_WRITERS: dict[str, Callable[..., None]] = {
    ".csv": _write_table,
    ".tsv": _write_table,
    ".jsonl": _write_lines,
}
"""Ending of a file's name -> what writes it."""
