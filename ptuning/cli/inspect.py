"""`ptuning inspect`."""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from ptuning.cli.arguments import base_of, load_model, one_row, positive, prompt_command, read_options
from ptuning.errors import DataError, PromptError


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    about = "what a prompt decodes to, and how much of that can be believed"
    parser = prompt_command(commands, "inspect", about, run)
    parser.add_argument("--data", help="rows with answers, on which the verdict rests; without them nothing is judged")
    parser.add_argument("--max-rows", type=positive, default=500, help="rows of --data, at random (default: 500)")
    parser.add_argument("--human", metavar="TEXT", help="a person's prompt to measure beside it")
    parser.add_argument("--html", metavar="FILE", help="write the report as one HTML file")
    parser.add_argument(
        "--run",
        dest="run_directory",
        metavar="DIR",
        help="the training run (default: the directory that PROMPT_DIR is in)",
    )
    parser.add_argument("--top-k", type=int, default=5, help="neighbours a virtual token (default: 5)")
    metrics = ("cosine", "centred_cosine", "l2", "csls")
    parser.add_argument("--metric", choices=metrics, default="cosine", help="what near means (default: cosine)")
    parser.add_argument("--input", help="for a conditioned prompt: the text whose own prompt is shown")
    parser.add_argument("--verbalise", action="store_true", help="also ask the model to put the prompt into words")
    parser.add_argument("--wayward", metavar="TEXT", help="also tune prompts whose decoding is pulled to this text")


def _load_embeddings(parsed: argparse.Namespace) -> tuple[Any, Any]:
    """The prompt, and of its base model the embeddings alone."""
    from ptuning.inference import PromptLibrary, as_prompt, base_revision
    from ptuning.model import Backbone

    with base_of(parsed) as base:
        revision = base_revision(prompts := {"prompt": as_prompt(parsed.prompt)}, base)
        backbone = Backbone.embeddings_of(base, parsed.dtype, parsed.device, revision, parsed.trust_remote_code)
        return PromptLibrary(backbone, prompts, parsed.allow_other_base)["prompt"], backbone


def run(parsed: argparse.Namespace) -> None:
    """Prints the report."""
    from ptuning.inspection import inspect, lines, table_lines, write_page

    if parsed.wayward is not None and parsed.data is None:
        raise DataError("--wayward without --data", "rows to measure on", "Give them with --data")
    if parsed.data is None and not parsed.verbalise:
        prompt, backbone = _load_embeddings(parsed)
    else:
        lm = load_model(parsed)
        prompt, backbone = lm.prompts["prompt"], lm.backbone
    rows, train = _sample(parsed, prompt), _require_possible(parsed, prompt, backbone)
    report = inspect(
        prompt,
        backbone,
        rows and [row.values for row in rows],
        k=parsed.top_k,
        metric=parsed.metric,
        row=_own_row(parsed, prompt, backbone),
        human=parsed.human,
        run=parsed.run_directory or _run_of(parsed.prompt),
        options=read_options(parsed, progress=parsed.data is not None),
    )
    if not parsed.json:
        print("\n".join(lines(report)), flush=True)
    if parsed.html:
        write_page(report, parsed.html, parsed.prompt)
    more = _asked_for(parsed, prompt, backbone, train, rows)
    if parsed.json:
        print(json.dumps(report.as_dict() | {name: table.as_dict() for name, table in more.items()}))
        return
    for name, table in more.items():
        print("\n".join(["", name, *table_lines(table)]))
    if parsed.html:
        print(f"saved: {parsed.html}")


def _require_possible(parsed: argparse.Namespace, prompt: Any, backbone: Any) -> list[Any]:
    """Finds what would fail after minutes before they are spent; gives the rows that --wayward tunes on."""
    from ptuning.data import read_rows
    from ptuning.files import require_writable
    from ptuning.inspection import require_layers

    if parsed.html and Path(parsed.html).is_dir():
        raise DataError(f"--html {parsed.html}, a directory", "a file", "Add a name, such as report.html")
    if parsed.html:
        require_writable(Path(parsed.html))
    if parsed.verbalise:
        require_layers(backbone)
    if parsed.wayward is None:
        return []
    if not backbone.tokenizer(parsed.wayward, add_special_tokens=False).input_ids:
        raise DataError(f"--wayward {parsed.wayward!r}", "a text of one token or more", "Write the text to pull to")
    source = prompt.training.get("data", {}).get("train")
    if source is None:
        raise DataError(f"--wayward for {parsed.prompt}, which names no training rows", "such rows", "Leave it out")
    return read_rows(source, "train", prompt.task.columns)


def _run_of(prompt: str) -> Path | None:
    """The training run that a prompt's directory is in; None where it is in none."""
    from ptuning.training import RunDirectory

    found = Path(prompt).absolute().parent
    return found if RunDirectory(found).snapshots() else None


def _sample(parsed: argparse.Namespace, prompt: Any) -> list[Any] | None:
    """Rows of --data with answers, the same random ones each time; None without --data."""
    from ptuning.data import read_rows

    if parsed.data is None:
        if parsed.human is not None:
            raise DataError("--human without --data", "rows to measure it on", "Give them with --data")
        return None
    if prompt.task is None:
        raise PromptError(f"--data for {parsed.prompt}, which names no task", "no rows", "Leave --data out")
    rows = read_rows(parsed.data, "test", prompt.task.columns)
    return random.Random(0).sample(rows, min(parsed.max_rows, len(rows)))


def _own_row(parsed: argparse.Namespace, prompt: Any, backbone: Any) -> dict[str, str] | None:
    """The row of --input."""
    if parsed.input is None:
        return None
    return one_row(parsed.input, backbone.coder(prompt.task).columns if prompt.task else ("text",))


def _asked_for(parsed: argparse.Namespace, prompt: Any, backbone: Any, train: Any, rows: Any) -> dict[str, Any]:
    """The tables of what is made only where it is asked for."""
    found = {}
    if parsed.verbalise:
        from ptuning.inspection import verbalise

        found["verbalise"] = verbalise(prompt, backbone)
    if parsed.wayward is not None:
        from ptuning.inspection import wayward

        found["wayward"] = wayward(prompt, backbone, train, rows, parsed.wayward).table
    return found
