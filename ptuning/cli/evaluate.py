"""`ptuning evaluate`."""

import argparse
import json
from typing import Any

from ptuning.cli.arguments import load_model, prompt_command, read_options
from ptuning.errors import DataError


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = prompt_command(commands, "evaluate", "measure a prompt on rows with answers", run)
    parser.add_argument("--data", help="rows (default: the test or validation rows of the prompt's training)")
    parser.add_argument("--baseline", action="store_true", help="also measure the same words without the soft prompt")


def run(parsed: argparse.Namespace) -> None:
    """Prints the metrics."""
    from ptuning.data import read_rows
    from ptuning.evaluation import evaluate_rows
    from ptuning.prompts import results_table

    lm = load_model(parsed)
    prompt, task = lm.prompts["prompt"], lm.task("prompt")
    used = prompt.training.get("data", {})
    split = "test" if parsed.data or used.get("test") else "validation"
    source = parsed.data or used.get(split)
    if source is None:
        raise DataError("no rows to evaluate on", "a data file with answers", "Give one with --data")
    rows, options = read_rows(source, split, task.columns), read_options(parsed, progress=True)
    results = evaluate_rows(lm.backbone, prompt.on(lm.backbone.device), task, rows, parsed.baseline, options)
    measured = {name: metrics.as_dict() for name, metrics in results.items()}
    if parsed.json:
        told = {"prompt": parsed.prompt, "data": source, "results": measured}
        print(json.dumps({**told, "capabilities": lm.backbone.capabilities}))
    else:
        print("\n".join(results_table(measured)))
