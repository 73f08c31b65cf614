"""`ptuning predict`."""

import argparse
import json
from typing import Any

from ptuning.cli.arguments import load_model, one_row, positive, prompt_command


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = prompt_command(commands, "predict", "answer a text, or every row of a file", run)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", help="the text, for a template with one column")
    source.add_argument("--data", help="rows to answer, one answer per row")
    parser.add_argument("--max-new-tokens", type=positive, default=50, help="length of written answers (default: 50)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a written answer; repeatable")


def run(parsed: argparse.Namespace) -> None:
    """Prints one answer per row."""
    lm = load_model(parsed)
    rows = _rows(parsed, lm)
    if lm.task("prompt").is_classification:
        answers = [{"label": each.label, "probabilities": each.probabilities} for each in lm.classify(rows)]
        lines = [f"{each['label']} {each['probabilities'][each['label']]:.3f}" for each in answers]
    else:
        lines = lm.generate(rows, max_new_tokens=parsed.max_new_tokens, stop_strings=parsed.stop)
        answers = [{"text": text} for text in lines]
    print(json.dumps({"answers": answers}) if parsed.json else "\n".join(" ".join(line.split()) for line in lines))


def _rows(parsed: argparse.Namespace, lm: Any) -> list[Any]:
    """The rows of --data, or the one of --input."""
    columns = lm.columns("prompt")
    if parsed.data is not None:
        from ptuning.data import read_rows

        return [row.values for row in read_rows(parsed.data, "test", columns)]
    return [one_row(parsed.input, columns)]
