"""`ptuning harden`."""

import argparse
import json
import random
from typing import Any

from ptuning.cli.arguments import load_model, positive, prompt_command, read_options
from ptuning.errors import DataError, PromptError


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    about = "search a text that does what a prompt does, and tell its price"
    parser = prompt_command(commands, "harden", about, run)
    parser.add_argument("--data", required=True, help="rows with answers, on which the price is measured")
    parser.add_argument("--train", metavar="DATA", help="rows to search with (default: those of the prompt's training)")
    parser.add_argument("--max-rows", type=positive, default=500, help="random rows of --data to read (default: 500)")
    parser.add_argument("--human", metavar="TEXT", help="a person's prompt to measure beside it")
    parser.add_argument("--max-steps", type=positive, default=100, help="steps of the search (default: 100)")
    parser.add_argument("--search-rows", type=positive, default=32, help="rows that a step reads (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search (default: 0)")


def run(parsed: argparse.Namespace) -> None:
    """Prints the text and its price."""
    from tqdm.auto import tqdm

    from ptuning.data import read_rows
    from ptuning.inspection import Search, harden, price_lines

    lm = load_model(parsed)
    prompt = lm.prompts["prompt"]
    if prompt.task is None:
        raise PromptError(f"{parsed.prompt}, which names no task", "a prompt with a template", "Harden another")
    source = parsed.train or prompt.training.get("data", {}).get("train")
    if source is None:
        raise DataError(f"{parsed.prompt}, which names no training rows", "rows to search with", "Give --train")
    train, rows = (
        read_rows(each, split, prompt.task.columns) for each, split in ((source, "train"), (parsed.data, "test"))
    )
    rows = random.Random(0).sample(rows, min(parsed.max_rows, len(rows)))
    search = Search(parsed.max_steps, parsed.search_rows, seed=parsed.seed)
    with tqdm(total=search.max_steps, desc="searching", unit="step") as bar:

        def tell(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()

        options = read_options(parsed, progress=True, keeps_bars=False)
        found = harden(prompt, lm.backbone, train, rows, parsed.human, search, options=options, on_step=tell)
    if parsed.json:
        print(json.dumps({"texts": list(found.texts), "template": found.template, **found.as_dict()}))
    else:
        print("\n".join(price_lines(found)))
