"""Writes a saved prompt's model card and its table of results, as Markdown, and parts that other cards share.

Knows nothing of tensors or directories: everything on a prompt's card comes from `ptuning.json`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ptuning.data import Task, Template

_CARD = """---
{front_matter}---
# Soft prompt

{num_virtual_tokens} virtual tokens of width {width} for the frozen model {base}, made by ptuning {version}.
{placement}

{sections}
"""
_USE = """```python
import ptuning

lm = ptuning.PromptedLM.from_pretrained({base}, {{"task": "THIS DIRECTORY"}})
lm.{method}([{row}], prompt="task")
```"""


def model_card(own: Mapping[str, Any], placement: str) -> str:
    """The model card: what the prompt is, its results, and how to load it.

    Args:
        own: The content of the prompt's `ptuning.json`.
        placement: A sentence on which other libraries can load the prompt.
    """
    name = own["base"]["name"]
    task = Task(**own["task"]) if own["task"] else None
    use = list[str]()
    if task is not None:
        row = json.dumps(dict.fromkeys(Template.parse(task.template).field_names, "..."))
        method = "classify" if task.is_classification else "generate"
        use = [_USE.format(base=json.dumps(name), method=method, row=row)] if name else []
    training = [
        f"- {key}: {value if isinstance(value, int | float) else code(str(value))}"
        for key, value in own["training"].items()
    ]
    sections = {
        "Task": task_lines(task) if task else [],
        "Results": results_table(own["results"]),
        "Training": training,
        "Use": use,
    }
    return _CARD.format(
        front_matter=front_matter(name, ["prompt-tuning", "p-tuning"]),
        base=code(str(name)),
        num_virtual_tokens=own["num_virtual_tokens"],
        width=own["width"],
        version=own["library_version"],
        placement=placement,
        sections=sections_text(sections),
    )


def front_matter(base: str | None, tags: Sequence[str]) -> str:
    """The YAML in front of a card, without the lines around it."""
    about = {"library_name": "ptuning", "base_model": base, "tags": list(tags)}
    return yaml.safe_dump(about, sort_keys=False, allow_unicode=True)


def sections_text(sections: Mapping[str, Sequence[str]]) -> str:
    """The sections that have lines, by their titles."""
    return "\n".join(f"## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in sections.items() if lines)


def task_lines(task: Task) -> list[str]:
    """What a row becomes, and the labels; the template cannot leave its fence."""
    labels = code(str(task.verbalizer)) if task.verbalizer else "free text"
    fence = "`" * (1 + max(2, _longest_run(task.template)))
    return [fence, task.template, fence, f"Answer: {code(task.answer)}; labels: {labels}"]


def code(text: str) -> str:
    """Text as code within a line, which it cannot leave."""
    quote, line = "`" * (1 + _longest_run(text)), " ".join(text.split())
    return f"{quote} {line} {quote}" if line.startswith("`") or line.endswith("`") else f"{quote}{line}{quote}"


def _longest_run(text: str) -> int:
    """The most backticks in a row."""
    return max(map(len, re.findall("`+", text)), default=0)


def results_table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of a Markdown table of results, whose columns stand in line in a terminal too."""
    if not results:
        return []
    rows = [["", "rows", "accuracy", "95 % interval", "loss a token"]]
    for name, measured in results.items():
        low, high = measured["interval"]
        accuracy, loss = (_three_digits(measured[key]) for key in ("accuracy", "loss"))
        rows.append([name, f"{measured['num_rows']:,}", accuracy, f"{low:.3f} to {high:.3f}", loss])
    if any(measured.get("macro_f1") is not None for measured in results.values()):
        macro = (_three_digits(measured.get("macro_f1")) for measured in results.values())
        rows = [[*row, cell] for row, cell in zip(rows, ["macro-F1", *macro], strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    return [lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]]


def _three_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
