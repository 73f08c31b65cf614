"""What `ptuning predict --server` adds: a client of a vLLM server, and answers that are kept as they come.

Knows nothing of how answers are written.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ptuning.cli.arguments import positive
from ptuning.cli.journal import Journal, digest_of
from ptuning.errors import ConfigError, ServerError

_KEY = "VLLM_API_KEY"  # vLLM's own name for it
_CONCURRENCY = 16


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "--server",
        metavar="URL",
        help="answer through a vLLM server; PROMPT_DIR is then what ptuning export --to vllm wrote, --model the name "
        f"under which the server serves the base, and {_KEY} in the environment its key",
    )
    parser.add_argument("--name", help="with --server: the prompt's name, if PROMPT_DIR holds several")
    parser.add_argument(
        "--concurrency", type=positive, default=_CONCURRENCY, help=f"with --server: requests at once ({_CONCURRENCY})"
    )
    parser.add_argument(
        "--resume", action="store_true", help="with --server and --output: ask for the rows that an earlier run left"
    )


def require_together(parsed: argparse.Namespace) -> None:
    """Raises `ConfigError` for an option without the one that it belongs to."""
    if parsed.server is None:
        for given, option in ((parsed.name is not None, "--name"), (parsed.resume, "--resume")):
            if given:
                raise ConfigError(f"{option} without --server", "both", "Give the server's address, or leave it out")
    elif parsed.resume and not parsed.output:
        raise ConfigError("--resume without --output", "the file that was begun", "Name it with --output")


@contextmanager
def client_of(parsed: argparse.Namespace) -> Iterator[Any]:
    """A client of the server that the arguments name."""
    from ptuning.export import VLLMClient

    with VLLMClient.load(
        parsed.prompt,
        parsed.server,
        api_key=os.environ.get(_KEY) or None,
        model=parsed.model,
        concurrency=parsed.concurrency,
        allow_other_base=parsed.allow_other_base,
        trust_remote_code=parsed.trust_remote_code,
    ) as client:
        yield client


@contextmanager
def kept_answers(
    parsed: argparse.Namespace, client: Any, rows: Sequence[Mapping[str, Any]]
) -> Iterator[list[dict[str, Any]]]:
    """The rows' answers. With --output each is kept in a journal as it comes, until the block has ended well.

    Raises:
        ServerError: Where rows have no answer; it says how to ask for them again.
    """
    name, limits = client.prompts.named(parsed.name), (parsed.max_new_tokens, parsed.stop)
    with ExitStack() as stack:
        journal, remedy = None, "; with --output FILE the others' answers are kept"
        if parsed.output:
            asked = {"export": client.prompts.digest, "name": name, "limits": limits, "rows": digest_of(rows)}
            journal = stack.enter_context(Journal(Path(parsed.output), asked, parsed.resume))
            remedy = f"; the others' answers are in {journal.path}, and --resume asks for these rows only"
        try:
            found = _answered(parsed, client, name, rows, journal)
        except ServerError as error:
            raise ServerError(error.received, error.expected, f"{error.remedy}{remedy}") from error
        yield [found[i] for i in range(len(rows))]
        if journal is not None:
            journal.finish()


def plain(answer: Any) -> dict[str, Any]:
    """An answer as plain data: a label and the probabilities of all labels, or a text."""
    if isinstance(answer, str):
        return {"text": answer}
    return {"label": answer.label, "probabilities": answer.probabilities}


def _answered(
    parsed: argparse.Namespace, client: Any, name: str, rows: Sequence[Any], journal: Journal | None
) -> dict[int, dict[str, Any]]:
    """Row's number -> its answer; those that the journal has are not asked for."""
    from tqdm.auto import tqdm

    found = {} if journal is None else journal.answers
    answers = client.answers(rows, name, parsed.max_new_tokens, parsed.stop, skip=set(found))
    with tqdm(total=len(rows), initial=len(found), unit="row", disable=parsed.data is None) as bar:
        for row, answer in answers:
            found[row] = plain(answer)
            if journal is not None:
                journal.add(row, found[row])
            bar.update()
    return found
