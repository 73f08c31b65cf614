"""Finds out what a server serves, and whether that is the base that the prompts were tuned on.

Knows nothing of rows.
"""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ptuning.errors import ServerError
from ptuning.export.vllm.embeddings import payload
from ptuning.export.vllm.exported import ExportedPrompts
from ptuning.export.vllm.probes import MOST_DIFFERENCE, difference
from ptuning.export.vllm.requests import COMPLETIONS, read_log_probs, scoring
from ptuning.export.vllm.server import RefusedError, Server, UnreachableError

OLDEST = (0, 26)  # CVE-2026-73557, in what earlier versions do with embeddings, was mended there


@dataclass(frozen=True)
class Served:
    """A model as a server serves it."""

    name: str
    """What requests call it."""
    max_tokens: int | None
    """The most tokens of a row and its answer; None where the server does not tell."""
    difference: float
    """The mean difference to the base's log-probabilities after the probes, in nats."""


def served_by(
    server: Server, prompts: ExportedPrompts, model: str | None, allow_other_base: bool, stopping: threading.Event
) -> Served:
    """The model that the server serves.

    Args:
        server: The server.
        prompts: What the directory holds.
        model: The name under which the server serves the base; None: it serves one model.
        allow_other_base: Whether to accept a model that answers the probes otherwise than the base.
        stopping: Once it is set, nothing is sent again.

    Raises:
        ServerError: If the server cannot be reached, is older than 0.26, takes no embeddings or serves another model.
    """
    _require_version(server, stopping)
    entry = _entry(server.get("/v1/models", stopping), server.url, model)
    name = str(entry["id"])
    found = _difference(server, prompts, name, stopping)
    if found > MOST_DIFFERENCE and not allow_other_base:
        raise ServerError(
            f"{server.url}, whose model {name} thinks otherwise than {prompts.base_name} "
            f"(log-probabilities after a few texts differ by {found:.2f} on average)",
            f"the base that the prompts were tuned on, within {MOST_DIFFERENCE}",
            "Serve that model, or allow it with allow_other_base=True or --allow-other-base",
        )
    return Served(name, entry.get("max_model_len"), found)


def _require_version(server: Server, stopping: threading.Event) -> None:
    """Raises `ServerError` for a vLLM that is too old; other servers, and gateways, tell no version."""
    try:
        told = server.get("/version", stopping)
    except UnreachableError:
        raise
    except ServerError:
        return
    version = str(told.get("version", "")) if isinstance(told, dict) else ""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and "dev" not in version and (int(found[1]), int(found[2])) < OLDEST:
        raise ServerError(
            f"{server.url}, a vLLM {version}", "0.26 or newer, in which CVE-2026-73557 is mended", "Upgrade the server"
        )


def _entry(listed: Any, url: str, model: str | None) -> dict[str, Any]:
    """The entry of the model in the server's list."""
    entries = {str(each["id"]): dict(each) for each in listed.get("data", ())}
    if model is None and len(entries) == 1:
        return next(iter(entries.values()))
    if model not in entries:
        received = f"{url} with the models {', '.join(entries) or 'none'}"
        raise ServerError(received, f"one named {model}" if model else "a single one", "Name the base with --model")
    return entries[model]


def _difference(server: Server, prompts: ExportedPrompts, model: str, stopping: threading.Event) -> float:
    """The mean difference over all probes."""
    probes = prompts.probes
    ids: Sequence[int] = sorted({int(i) for each in probes for i in each.log_probs})
    payloads = [payload(prompts.embeddings.of(each.ids)) for each in probes]
    body = {"model": model, **scoring(payloads, ids, are_all=False)}
    try:
        found = read_log_probs(server.post(COMPLETIONS, body, stopping), ids, len(probes))
    except RefusedError as error:  # what it refuses here it would refuse of every row
        raise ServerError(error.received, error.expected, error.remedy) from error
    return sum(map(difference, probes, found)) / len(probes)
