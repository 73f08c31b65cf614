"""`ptuning inspect`: reads the prompt, its rows and its run, and prints the report.

Knows nothing of how anything is measured.
"""

import argparse
import json
import logging
import random
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from ptuning.cli.arguments import base_of, load_model, one_row, positive, prompt_command, read_options
from ptuning.errors import DataError, PromptError

_log = logging.getLogger(__name__)


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    about = "what a prompt decodes to, and how far that can be believed"
    parser = prompt_command(commands, "inspect", about, run)
    parser.add_argument("--data", help="rows with answers, on which the verdict rests; without them nothing is judged")
    parser.add_argument("--max-rows", type=positive, default=500, help="random rows of --data to read (default: 500)")
    parser.add_argument("--human", metavar="TEXT", help="a person's prompt to score beside it")
    parser.add_argument("--html", metavar="FILE", help="write the report as one HTML file")
    parser.add_argument(
        "--card", action="store_true", help="with --data: write the verdict into the saved prompt and its model card"
    )
    parser.add_argument(
        "--run",
        dest="run_directory",
        metavar="DIR",
        help="the training run to follow the prompt through (default: the directory that PROMPT_DIR is in)",
    )
    parser.add_argument("--top-k", type=int, default=5, help="neighbours of each virtual token (default: 5)")
    metrics = ("cosine", "centred_cosine", "l2", "csls")
    parser.add_argument(
        "--metric", choices=metrics, default="cosine", help="how distance is measured (default: cosine)"
    )
    parser.add_argument("--input", help="for a conditioned prompt: the text whose own prompt is decoded")
    parser.add_argument("--verbalise", action="store_true", help="also ask the model to put the prompt into words")
    parser.add_argument("--wayward", metavar="TEXT", help="also tune prompts whose decoding is pulled to this text")
    parser.add_argument(
        "--compare",
        metavar="DIR",
        action="append",
        default=[],
        help="also compare its decoding with that of this prompt, tuned with another seed or for another task; "
        "may be given several times",
    )


def _load_embeddings(parsed: argparse.Namespace) -> tuple[Any, Any]:
    """The prompt and the embeddings of its base model, without the model's layers."""
    from ptuning.inference import PromptLibrary, as_prompt, base_revision
    from ptuning.model import Backbone

    with base_of(parsed) as base:
        revision = base_revision(prompts := {"prompt": as_prompt(parsed.prompt)}, base)
        backbone = Backbone.embeddings_of(base, parsed.dtype, parsed.device, revision, parsed.trust_remote_code)
        return PromptLibrary(backbone, prompts, parsed.allow_other_base)["prompt"], backbone


def run(parsed: argparse.Namespace) -> None:
    """Prints the report."""
    from ptuning.inspection import DECORATIVE, ECHO, inspect, lines, table_lines

    _require_card_possible(parsed)
    if parsed.wayward is not None and parsed.data is None:
        raise DataError("--wayward without --data", "rows to measure on", "Give them with --data")
    if parsed.data is None and not parsed.verbalise:
        prompt, backbone = _load_embeddings(parsed)
    else:
        lm = load_model(parsed)
        prompt, backbone = lm.prompts["prompt"], lm.backbone
    rows, train = _sample(parsed, prompt), _require_possible(parsed, prompt, backbone)
    others = _others(parsed, backbone)
    report = inspect(
        prompt,
        backbone,
        rows and [row.values for row in rows],
        k=parsed.top_k,
        metric=parsed.metric,
        row=_own_row(parsed, prompt, backbone),
        human=parsed.human,
        run=parsed.run_directory or _run_of(parsed.prompt),
        require_run=parsed.run_directory is not None,
        options=read_options(parsed, progress=parsed.data is not None, keeps_bars=False),
        source=parsed.data,
    )
    if not parsed.json:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print("\n".join(lines(report, width)), flush=True)
        if report.verdict.word in (ECHO, DECORATIVE) and not prompt.is_conditioned:
            model = ["--model", parsed.model] if parsed.model else []
            command = shlex.join(["ptuning", "harden", parsed.prompt, "--data", parsed.data, *model])
            print(f"\nto look for words: {command}")
    if parsed.html:
        report.save_html(parsed.html, parsed.prompt)
    more = _more(parsed, prompt, backbone, train, rows, others)
    report = report.with_measures(*more)
    if parsed.html and more:
        report.save_html(parsed.html, parsed.prompt)
    card = _write_card(report, prompt, parsed.prompt) if parsed.card else None
    if parsed.json:
        print(json.dumps(report.as_dict()))
        return
    for measured in more:
        print("\n".join(["", measured.name, *table_lines(measured.table)]))
    for written in filter(None, (parsed.html, card)):
        print(f"saved: {written}")


def _require_card_possible(parsed: argparse.Namespace) -> None:
    """Refuses --card at once where it would fail after minutes."""
    from ptuning.files import require_writable
    from ptuning.prompts import prompt_directory

    if parsed.card and parsed.data is None:
        raise DataError("--card without --data", "rows to judge on", "Give them with --data")
    if parsed.card and not Path(parsed.prompt).is_dir():
        told = f"--card for {parsed.prompt}, which is no directory here"
        raise PromptError(told, "a saved prompt's directory", "Save the prompt, inspect it and push it again")
    if parsed.card:
        require_writable(prompt_directory(Path(parsed.prompt)))


def _write_card(report: Any, prompt: Any, directory: str) -> Path:
    """Saves the prompt with the verdict in the place of the older one; the card's path."""
    from ptuning.prompts import prompt_directory

    return Path(report.recorded_in(prompt).save(prompt_directory(Path(directory)))) / "README.md"


def _require_possible(parsed: argparse.Namespace, prompt: Any, backbone: Any) -> list[Any]:
    """Refuses at once what would fail after minutes; returns the rows that --wayward tunes on."""
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
    """The training run that a prompt's directory is in, if it kept snapshots."""
    from ptuning.prompts import prompt_directory
    from ptuning.training import RunDirectory

    if not Path(prompt).is_dir():  # a name on the hub
        return None
    found = prompt_directory(Path(prompt)).absolute().parent
    return found if RunDirectory(found).has_snapshots else None


def _others(parsed: argparse.Namespace, backbone: Any) -> dict[str, Any]:
    """Directory -> prompt of each --compare."""
    from ptuning.inference import PromptLibrary

    return dict(PromptLibrary(backbone, {path: path for path in parsed.compare}, parsed.allow_other_base))


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
    trained_on = prompt.training.get("data", {}).get("train")
    if trained_on is not None and Path(trained_on).resolve() == Path(parsed.data).resolve():
        _log.warning(f"the prompt was trained on {parsed.data}: other rows would say more about it")
    return random.Random(0).sample(rows, min(parsed.max_rows, len(rows)))


def _own_row(parsed: argparse.Namespace, prompt: Any, backbone: Any) -> dict[str, str] | None:
    """The row of --input."""
    if parsed.input is None:
        return None
    return one_row(parsed.input, backbone.coder(prompt.task).columns if prompt.task else ("text",))


def _more(
    parsed: argparse.Namespace, prompt: Any, backbone: Any, train: list[Any], rows: Any, others: dict[str, Any]
) -> list[Any]:
    """The measures that are made only on request."""
    from ptuning.inspection import Vocabulary, stability, verbalise, wayward

    found: list[Any] = []
    if parsed.verbalise:
        found.append(verbalise(prompt, backbone))
    if parsed.wayward is not None:
        found.append(wayward(prompt, backbone, train, rows, parsed.wayward))
    if others:
        tasks: dict[str, list[Any]] = {}
        for path, each in [(parsed.prompt, prompt), *others.items()]:
            task = str(each.task.without_prompt()) if each.task else path  # slots of any size, anywhere
            tasks.setdefault(task, []).append(each.embeddings_PH)
        found.append(stability(tasks, Vocabulary.of(backbone)))
    return found
