"""The card of a way that was fitted: what it is, what it scores and costs, and how to use it, as Markdown.

Knows nothing of how ways are fitted.
"""

import dataclasses
import json
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import mean

from ptuning.comparison.protocol import CARD, Job, Way
from ptuning.comparison.results import Results, WayResult
from ptuning.comparison.storage import OWN_FILE
from ptuning.data import Template
from ptuning.files import whole_file
from ptuning.prompts import base_lines, code, front_matter, sections_text, task_lines

_CARD = """---
{front_matter}---
# {name}

{title}: fitted with seed {seed} on {num_train:,} rows, in a comparison on {base}, by ptuning {version} on {date}
(transformers {transformers}, torch {torch}).

{sections}"""
_LOAD = """```python
import ptuning

way = ptuning.load_way("THIS DIRECTORY")
way.{method}([{row}])
```"""
_FIT_AGAIN = (
    "It cannot be loaded: the weights that it changed were not kept, and it must be fitted again to be used. "
    "`compare.save_weights: true` keeps them."
)


def write_card(directory: Path, way: Way, job: Job, results: Results, is_saved: bool) -> None:
    """Writes the card.

    Args:
        directory: What is shipped of the way.
        way: The way.
        job: What it was fitted with.
        results: What was measured of it with this seed alone.
        is_saved: Whether it can be brought back.
    """
    with whole_file(directory / CARD) as beside:
        beside.write_text(card(way, job, results, is_saved), encoding="utf-8", newline="\n")


def card(way: Way, job: Job, results: Results, is_saved: bool) -> str:
    """The card as text; arguments as in `write_card`."""
    (result,) = results.ways
    row = json.dumps(dict.fromkeys(Template.parse(job.task.template).field_names, "..."))
    method = "classify" if job.task.is_classification else "generate"
    use = _LOAD.format(method=method, row=row) if is_saved else _FIT_AGAIN
    sections = {
        "Task": task_lines(job.words),
        "Results": _results(results, result),
        "Costs": _costs(result),
        "Use": [use],
        "Base": base_lines(str(job.backbone.name), dataclasses.asdict(job.backbone.fingerprint), OWN_FILE),
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


def _results(results: Results, result: WayResult) -> list[str]:
    """The scores, what validation rows chose, and what the inspector says."""
    told, rows = results.score(result.name), f"{results.num_rows:,} test rows"
    lines = [f"- {results.measure}, with its 95 % interval: {told} on {rows}"]
    lines += [f"- {name}: {mean(values):.3f}" for name, values in result.other_scores.items()]
    lines += [f"- chosen on validation rows: {key} {value}" for key, value in result.chosen.items()]
    return [*lines, *(f"- inspected: {each['word']}. {each['sentence']}" for each in result.verdicts)]


def _costs(result: WayResult) -> list[str]:
    """What was measured beside the score."""
    costs, told = result.costs, result.text_loss
    memory = "not measured" if costs.memory_bytes is None else f"{costs.memory_bytes / 1e6:,.0f} MB"
    forgets = "nothing: the base stays as it is" if told is None else f"{told.change:+.3f} nats a token of general text"
    lines = [
        f"- parameters: {costs.num_trained:,}",
        f"- until it could answer: {costs.seconds:,.1f} s; memory that this added: {memory}",
        f"- to ship beside the base: {costs.bytes_to_ship:,} bytes",
        f"- a request: {costs.extra_tokens:,.0f} more tokens, {costs.milliseconds:,.1f} ms alone",
        f"- 32 requests at once: {costs.rows_per_second:,.1f} rows a second",
        f"- forgets: {forgets}",
    ]
    if result.index is not None:
        own = result.index
        built = f"{own.num_bytes / 1e6:,.3f} MB in memory, built in {own.seconds:,.3f} s"
        lines.append(f"- its index: {built}; a look-up: {own.milliseconds:,.2f} ms")
    return lines
