"""The card of a way that was fitted: what it is, what it scores and costs, and how to use it, as Markdown.

Knows nothing of how ways are fitted.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ptuning.comparison.loading import KINDS
from ptuning.comparison.prompting import OWN_FILE
from ptuning.comparison.protocol import CARD, Job, Way
from ptuning.comparison.results import Results, WayResult
from ptuning.data import Template
from ptuning.files import whole_file
from ptuning.prompts import code, front_matter, sections_text, task_lines

_CARD = """---
{front_matter}---
# {name}

{title}, for the frozen model {base}: fitted with seed {seed} on {num_train:,} rows, by ptuning {version} on {date}
(transformers {transformers}, torch {torch}).

{sections}"""
_LOAD = """```python
import ptuning

way = ptuning.load_way("THIS DIRECTORY")
way.classify([{row}])
```"""
_FIT_AGAIN = (
    "It cannot be loaded: ptuning compare measured it, and it must be fitted again to be used. Beside this file lies "
    "what would be shipped, but for whole weights, which are not kept."
)


def write_card(directory: Path, way: Way, job: Job, result: WayResult) -> None:
    """Writes the card.

    Args:
        directory: What is shipped of the way.
        way: The way.
        job: What it was fitted with.
        result: What was measured with this seed alone.
    """
    own = json.loads((directory / OWN_FILE).read_text(encoding="utf-8"))
    with whole_file(directory / CARD) as beside:
        beside.write_text(card(way, job, result, own["kind"]), encoding="utf-8", newline="\n")


def card(way: Way, job: Job, result: WayResult, kind: str) -> str:
    """The card as text; arguments as in `write_card`, and the kind by which it is loaded."""
    row = json.dumps(dict.fromkeys(Template.parse(job.task.template).field_names, "..."))
    use = _LOAD.format(row=row) if kind in KINDS and job.task.is_classification else _FIT_AGAIN
    sections = {
        "Task": task_lines(job.words),
        "Results": _results(result),
        "Costs": _costs(result),
        "Use": [use],
        "Base": _base(job.backbone.fingerprint.architecture, job.backbone.fingerprint.weights, job),
    }
    return _CARD.format(
        front_matter=front_matter(job.backbone.name, ["ptuning-compare", way.name]),
        name=way.name,
        title=f"{way.title[0].upper()}{way.title[1:]}",
        base=code(str(job.backbone.name)),
        seed=job.seed,
        num_train=len(job.train),
        version=metadata.version("ptuning"),
        date=datetime.now(UTC).date(),
        transformers=metadata.version("transformers"),
        torch=metadata.version("torch"),
        sections=sections_text(sections),
    )


def _results(result: WayResult) -> list[str]:
    """The score, what validation rows chose, and what the inspector says."""
    results = Results([result])
    lines = [f"- accuracy, with its 95 % interval: {results.accuracy(result.name)} on {results.num_rows:,} test rows"]
    lines += [f"- chosen on validation rows: {key} {value}" for key, value in result.chosen.items()]
    return [*lines, *(f"- inspected: {each['word']}. {each['sentence']}" for each in result.verdicts)]


def _costs(result: WayResult) -> list[str]:
    """What was measured beside the score."""
    costs, told = result.costs, result.text_loss
    memory = "not measured" if costs.memory_bytes is None else f"{costs.memory_bytes / 1e6:,.0f} MB"
    forgets = "nothing: the base stays as it is" if told is None else f"{told.change:+.3f} nats a token of general text"
    return [
        f"- parameters: {costs.num_trained:,}",
        f"- until it could answer: {costs.seconds:,.1f} s; memory that this added: {memory}",
        f"- to ship beside the base: {costs.bytes_to_ship:,} bytes",
        f"- a request: {costs.extra_tokens:,.0f} more tokens, {costs.milliseconds:,.1f} ms alone",
        f"- 32 requests at once: {costs.rows_per_second:,.1f} rows a second",
        f"- forgets: {forgets}",
    ]


def _base(architecture: Mapping[str, Any], weights: tuple[float, ...], job: Job) -> list[str]:
    """Which base it belongs to."""
    digest = hashlib.sha256(json.dumps(weights).encode()).hexdigest()
    shape = ", ".join(f"{key} {value}" for key, value in architecture.items())
    return [
        f"- {code(str(job.backbone.name))} in {str(job.backbone.dtype).removeprefix('torch.')}: {shape}",
        f"- fingerprint: a sample of its weights, in `{OWN_FILE}`; SHA-256 {code(digest)}",
    ]
