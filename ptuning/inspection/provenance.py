"""Where a prompt comes from and what it was inspected with, as short texts.

Knows nothing of what the prompt means.
"""

import datetime
import hashlib
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from ptuning.prompts import SoftPrompt

_PACKAGES = ("ptuning", "torch", "transformers")


def provenance(prompt: SoftPrompt, num_rows: int | None = None, source: str | None = None) -> dict[str, str]:
    """Name -> text; what is not known is left out.

    Args:
        prompt: The prompt.
        num_rows: The rows that it was judged on; None: none.
        source: Where they come from.
    """
    known = {name: str(value) for name, value in _known(prompt) if value not in (None, "", {}, [])}
    return known if num_rows is None else known | {"judged on": f"{num_rows:,} rows of {source or 'a program'}"}


def _known(prompt: SoftPrompt) -> Iterator[tuple[str, Any]]:
    made, task = prompt.training, prompt.task
    yield "base model", " at ".join(filter(None, (prompt.base_name, prompt.revision)))
    if prompt.fingerprint is not None:
        drawn = repr((sorted(prompt.fingerprint.architecture.items()), prompt.fingerprint.weights))
        yield "its fingerprint", hashlib.sha256(drawn.encode()).hexdigest()[:12]
    if task is not None:
        yield "template", repr(task.template)
        yield "answer", repr(task.answer) if task.verbalizer is None else None
        yield "labels", ", ".join(f"{label} as {text!r}" for label, text in (task.verbalizer or {}).items())
    yield "virtual tokens", f"{prompt.num_virtual_tokens} of width {prompt.width}"
    yield "encoder, start", ", ".join(filter(None, (prompt.encoder.get("name"), prompt.init.get("kind"))))
    yield "data", ", ".join(f"{split}: {source}" for split, source in made.get("data", {}).items())
    if "rows" in made:
        yield "rows", f"{made['rows']:,} to train on, {made.get('validation_rows', 0):,} to validate"
    if "steps" in made:
        yield "steps", f"{made['steps']:,}, of which step {made.get('best_step', made['steps']):,} is kept"
    if "learning_rate" in made:
        yield "learning rate", f"{made['learning_rate']:.4g}"
    yield "seed", made.get("seed")
    yield "precision", made.get("dtype")
    yield "trained with", f"ptuning {prompt.library_version}"
    yield "inspected with", ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    yield "inspected on", datetime.datetime.now(datetime.UTC).date().isoformat()
