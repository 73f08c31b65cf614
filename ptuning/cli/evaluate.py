"""`ptuning evaluate`."""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ptuning.cli.arguments import load_model, prompt_command, read_options
from ptuning.errors import DataError


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = prompt_command(commands, "evaluate", "measure a prompt on rows with answers", run)
    parser.add_argument("--data", help="rows (default: the test or validation rows of the prompt's training)")
    parser.add_argument("--baseline", action="store_true", help="also measure the same words without the soft prompt")
    parser.add_argument("--predictions", help="a file to write: one line of JSON a row, with what was predicted")


def run(parsed: argparse.Namespace) -> None:
    """Prints the metrics."""
    from ptuning.data import read_rows
    from ptuning.evaluation import WITH, class_table, evaluations, prediction_records
    from ptuning.prompts import results_table

    lm = load_model(parsed)
    prompt, task = lm.prompts["prompt"], lm.task("prompt")
    used = prompt.training.get("data", {})
    split = "test" if parsed.data or used.get("test") else "validation"
    source = parsed.data or used.get(split)
    if source is None:
        raise DataError("no rows to evaluate on", "a data file with answers", "Give one with --data")
    rows, options = read_rows(source, split, task.columns), read_options(parsed, progress=True)
    results = evaluations(lm.backbone, prompt.on(lm.backbone.device), task, rows, parsed.baseline, options)
    measured = {name: metrics.as_dict() for name, (metrics, _) in results.items()}
    labels = list(task.verbalizer or ())
    classes = {name: metrics.details(labels) for name, (metrics, _) in results.items()} if labels else None
    if parsed.predictions:
        _write(prediction_records(results[WITH][1], rows, task), Path(parsed.predictions))
    if parsed.json:
        told = {"prompt": parsed.prompt, "data": source, "results": measured, "classes": classes}
        print(json.dumps({**told, "capabilities": lm.backbone.capabilities}))
        return
    print("\n".join(results_table(measured)))
    if labels:
        print("\n".join(["", *class_table(results[WITH][0], labels)]))


def _write(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Writes records, one line of JSON each."""
    from ptuning.files import whole_file

    with whole_file(path) as beside:
        beside.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
