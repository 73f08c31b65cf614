"""`ptuning evaluate`."""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptuning.cli.arguments import load_model, positive, prompt_command, read_options
from ptuning.errors import DataError

_log = logging.getLogger(__name__)


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = prompt_command(commands, "evaluate", "measure a prompt on rows with answers", run)
    parser.add_argument("--data", help="rows (default: the test or validation rows of the prompt's training)")
    parser.add_argument("--baseline", action="store_true", help="also measure the same words without the soft prompt")
    parser.add_argument(
        "--predictions", metavar="FILE", help="write what is predicted with the prompt: one JSON line per row"
    )
    parser.add_argument(
        "--max-new-tokens", type=positive, help="length of written answers (default: that of the longest expected one)"
    )


def run(parsed: argparse.Namespace) -> None:
    """Prints the metrics."""
    from ptuning.data import read_rows
    from ptuning.evaluation import (
        WITH,
        WrittenMetrics,
        evaluate_rows,
        prediction_records,
        results_report,
        write_predictions,
    )
    from ptuning.files import require_writable

    if parsed.predictions:
        require_writable(Path(parsed.predictions))
    lm = load_model(parsed)
    prompt, task = lm.prompts["prompt"], lm.task("prompt")
    used = prompt.training.get("data", {})
    split = "test" if parsed.data or used.get("test") else "validation"
    source = parsed.data or used.get(split)
    if source is None:
        raise DataError("no rows to evaluate on", "a data file with answers", "Give one with --data")
    rows, options = read_rows(source, split, task.columns), read_options(parsed, progress=True)
    found = evaluate_rows(lm.backbone, prompt.on(lm.backbone.device), task, rows, parsed.baseline, options)
    texts = {} if task.is_classification else _written(lm, rows, found, parsed.max_new_tokens)
    answers = [task.answer_text(row.values) for row in rows]
    compared = {name: WrittenMetrics.of(own, answers) for name, own in texts.items()}
    if parsed.predictions:
        records = prediction_records(task, rows, found[WITH].scores, texts.get(WITH))
        write_predictions(Path(parsed.predictions), records)
    metrics, labels = {name: each.metrics for name, each in found.items()}, tuple(task.verbalizer or ())
    if parsed.json:
        results = {name: each.as_dict(labels) for name, each in metrics.items()}
        for name, each in compared.items():
            results[name]["written"] = each.as_dict()
        told = {"prompt": parsed.prompt, "data": source, "results": results}
        print(json.dumps({**told, "capabilities": lm.backbone.capabilities}))
    else:
        print("\n".join(results_report(found, labels, compared)))


def _written(lm: Any, rows: Sequence[Any], found: Mapping[str, Any], max_new_tokens: int | None) -> dict[str, Any]:
    """The answers that each side generates greedily; none where the model cannot generate from embeddings."""
    from ptuning.evaluation import WITHOUT

    if not lm.backbone.generates_from_embeddings:
        _log.warning(f"no generated answers are compared: {lm.backbone.name} cannot generate from embeddings")
        return {}
    names = dict.fromkeys(found, "prompt")
    if WITHOUT in found:
        lm.prompts[WITHOUT], names[WITHOUT] = lm.prompts["prompt"].disabled(), WITHOUT
    return {
        name: lm.generate(
            [row.values for row in rows], names[name], max_new_tokens=max_new_tokens or each.num_answer_tokens
        )
        for name, each in found.items()
    }
