#!/usr/bin/env python
"""Scores a saved prompt's rows with lm-evaluation-harness through PEFT, and compares each with `ptuning evaluate`.

Both run in float32 and see the same words. The exit status is 1 where an answer differs. Knows nothing of how either
computes.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ptuning import SoftPrompt, Task
from ptuning.data import Row, Template, read_rows
from ptuning.data.template import Literal, Slot
from ptuning.errors import ConfigError, DataError, PTuningError

TASK = Path(__file__).parent / "lm_eval" / "task.yaml"
NAME = "ptuning"
MOST_APART = 1e-3  # nats between the two log-likelihoods of an answer; they add up the same numbers in another order


@dataclass(frozen=True)
class Answer:
    """How one side answers a row."""

    label: str
    """The label that it chooses."""
    log_prob: float
    """The log-likelihood of the expected label's text, in nats."""
    is_correct: bool
    """Whether the label is the expected one."""


def main() -> int:
    """Runs both sides and prints how far they are apart."""
    options = arguments()
    try:
        ours, theirs = both(options)
    except PTuningError as error:
        print(f"check_lm_eval: {error}", file=sys.stderr)
        return 2
    lines, is_same = compared(ours, theirs)
    print("\n".join(lines))
    return int(not is_same)


def both(options: argparse.Namespace) -> tuple[list[Answer], list[Answer]]:
    """Each row's answer by ptuning and by the harness."""
    prompt = SoftPrompt.from_pretrained(options.prompt)
    task = comparable(prompt)
    base: str | None = options.model or prompt.base_name
    if base is None:
        raise ConfigError(f"{options.prompt}, which names no base model", "a base model", "Give one with --model")
    rows = rows_of(prompt, options.data, options.rows)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(options.keep or folder)
        place.mkdir(parents=True, exist_ok=True)
        peft = prompt.save(place / "prompt")
        write_rows(place / "rows.jsonl", task, rows)
        write_task(place / "task" / "task.yaml", task, place / "rows.jsonl")
        ours = by_ptuning(place, peft, base, options.device)
        return ours, by_harness(place, peft, base, task, options)


def comparable(prompt: SoftPrompt) -> Task:
    """The prompt's task; raises `PTuningError` for one that the harness cannot be given."""
    if prompt.not_peft is not None:
        raise ConfigError(f"a prompt that PEFT cannot load ({prompt.not_peft})", "one that it can", "Choose another")
    task = prompt.task
    if task is None or task.verbalizer is None or task.chat_template:
        raise ConfigError(
            "a prompt without labels, or with a chat template", "labels and plain words", "Choose another"
        )
    ending = Template.parse(task.template).ending
    if ending is not None and ending != ending.rstrip():
        told = f"a template that ends with {ending[-1]!r}, which the harness moves into the answer"
        raise ConfigError(told, "words at its end", "Choose another")
    return task


def rows_of(prompt: SoftPrompt, source: str | None, most: int | None) -> list[Row]:
    """The first rows of a file; None: of the prompt's own test rows."""
    assert prompt.task is not None
    found = source or prompt.training.get("data", {}).get("test")
    if found is None:
        raise DataError("no rows to compare on", "a data file with answers", "Give one with --data")
    return read_rows(found, "test", prompt.task.columns)[:most]


def write_rows(file: Path, task: Task, rows: Sequence[Row]) -> None:
    """Writes the rows twice over: as ptuning reads them, and as the harness does."""
    labels = list(task.verbalizer or ())
    records = [
        {**row.values, "row": dict(row.values), "gold": labels.index(row.values[task.label_column])} for row in rows
    ]
    file.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")


def write_task(file: Path, task: Task, rows: Path) -> None:
    """Writes the harness' task."""
    settings = yaml.safe_load(TASK.read_text(encoding="utf-8"))
    settings |= {
        "dataset_kwargs": {"data_files": {"test": str(rows.resolve())}},
        "doc_to_text": words(task),
        "doc_to_choice": list((task.verbalizer or {}).values()),
    }
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")


def words(task: Task) -> str:
    """The template as Jinja: every stretch is a string of its own, so that no brace of it is read."""
    parts = [part for part in Template.parse(task.template).parts if not isinstance(part, Slot)]
    return "".join(
        "{{ " + (_quoted(part.text) if isinstance(part, Literal) else f"row[{_quoted(part.name)}]") + " }}"
        for part in parts
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def by_ptuning(place: Path, peft: Path, base: str, device: str) -> list[Answer]:
    """What `ptuning evaluate` answers."""
    written = place / "ptuning.jsonl"
    command = [sys.executable, "-m", "ptuning", "evaluate", str(peft), "--model", base, "--dtype", "float32"]
    command += ["--device", device, "--data", str(place / "rows.jsonl"), "--predictions", str(written), "--json"]
    results = json.loads(run(command, "ptuning evaluate"))["results"]
    num_cut = results["soft prompt"].get("num_cut")
    if num_cut:
        raise DataError(
            f"{num_cut} rows that are cut", "rows that fit", "Leave long rows out: the harness cuts elsewhere"
        )
    return [Answer(each["prediction"], each["log_prob"], each["correct"]) for each in records(written)]


def by_harness(place: Path, peft: Path, base: str, task: Task, options: argparse.Namespace) -> list[Answer]:
    """What the harness answers."""
    model = f"pretrained={base},peft={peft.resolve()},dtype=float32"
    command = [harness(options.lm_eval), "--model", "hf", "--model_args", model, "--tasks", NAME, "--log_samples"]
    command += ["--include_path", str(place / "task"), "--output_path", str(place / "harness")]
    run([*command, "--device", options.device, "--batch_size", str(options.batch_size)], "lm_eval")
    (samples,) = (place / "harness").rglob(f"samples_{NAME}_*.jsonl")
    labels, found = list(task.verbalizer or ()), sorted(records(samples), key=lambda each: each["doc_id"])
    return [answer([float(each[0][0]) for each in record["resps"]], labels, record["doc"]["gold"]) for record in found]


def answer(log_probs: Sequence[float], labels: Sequence[str], gold: int) -> Answer:
    """The harness' answer to one row."""
    chosen = max(range(len(labels)), key=lambda i: log_probs[i])
    return Answer(labels[chosen], log_probs[gold], chosen == gold)


def harness(program: str | None) -> str:
    """The harness' program."""
    found = shutil.which(program or "lm_eval")
    if found is None:
        remedy = (
            "Install it beside ptuning or in an environment of its own (ptuning/export/README.md), and give --lm_eval"
        )
        raise ConfigError(f"no program {program or 'lm_eval'}", "lm-evaluation-harness", remedy)
    return found


def run(command: Sequence[str], name: str) -> str:
    """A command's standard output, without the hub."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{name} failed: {done.stderr[-1500:]}", "exit status 0", "See the message")
    return done.stdout


def records(file: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def compared(ours: Sequence[Answer], theirs: Sequence[Answer]) -> tuple[list[str], bool]:
    """How far the two are apart, as lines, and whether they give the same answers."""
    pairs = list(zip(ours, theirs, strict=True))
    apart = [abs(one.log_prob - other.log_prob) for one, other in pairs]
    others = [i for i, (one, other) in enumerate(pairs) if one.label != other.label]
    accuracies: Mapping[str, float] = {
        name: sum(each.is_correct for each in side) / len(side)
        for name, side in (("ptuning evaluate", ours), ("lm-evaluation-harness", theirs))
    }
    lines = [f"accuracy by {name}: {value:.4f} on {len(pairs)} rows" for name, value in accuracies.items()]
    lines.append(f"rows with the same label: {len(pairs) - len(others)} of {len(pairs)}")
    lines.append(f"log-likelihood of the expected label: at most {max(apart):.6f} nats apart")
    lines += [f"row {i}: {ours[i].label} here, {theirs[i].label} there" for i in others[:10]]
    is_same = not others and math.isfinite(max(apart)) and max(apart) <= MOST_APART
    return lines, is_same


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", metavar="PROMPT_DIR", help="a saved prompt's directory, a run's, or a hub name")
    parser.add_argument("rows", metavar="ROWS", type=int, nargs="?", help="how many rows (default: all)")
    parser.add_argument("--data", help="rows with answers (default: the test rows of the prompt's training)")
    parser.add_argument("--model", help="the base model (default: the one that the prompt names)")
    parser.add_argument("--lm_eval", metavar="PROGRAM", help="the harness' program (default: lm_eval)")
    parser.add_argument("--device", default="cpu", help="of both (default: cpu)")
    parser.add_argument("--batch_size", type=int, default=8, help="of the harness (default: 8)")
    parser.add_argument("--keep", metavar="DIR", help="keep the task, the rows and both sides' answers there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
