"""Writes a saved prompt's model card and its table of results, as Markdown, and parts that other cards share.

Knows nothing of tensors or directories: everything on a prompt's card comes from `ptuning.json`.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ptuning.data import Task, Template

_CARD = """---
{front_matter}---
# {title}

{num_virtual_tokens} virtual tokens of width {width} for the frozen model {base}, made by ptuning {version}.
{placement}

{sections}
"""
_USE = """```python
import ptuning

lm = ptuning.PromptedLM.from_pretrained({base}, {{"task": {place}}})
lm.{method}([{row}], prompt="task")
```"""
_TITLE = "Soft prompt"
_OWN_RESULT = "soft prompt"  # the evaluation's name that is of the prompt itself
_TAGS = ("prompt-tuning", "p-tuning")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def model_card(own: Mapping[str, Any], placement: str, repository: str | None = None) -> str:
    """The model card: what the prompt is, its results, and how to load it.

    Args:
        own: The content of the prompt's `ptuning.json`.
        placement: A sentence on which other libraries can load the prompt.
        repository: Its name on the hub; None: it lies in a directory.
    """
    name, fingerprint = own["base"]["name"], own["base"].get("fingerprint")
    task = Task(**own["task"]) if own["task"] else None
    training = [
        f"- {key}: {value if isinstance(value, int | float) else code(str(value))}"
        for key, value in own["training"].items()
    ]
    sections = {
        "Task": task_lines(task) if task else [],
        "Results": results_table(own["results"]),
        "Inspection": _verdict_lines(own.get("verdict") or {}),
        "Training": training,
        "Base": base_lines(str(name), fingerprint, "ptuning.json") if fingerprint else [],
        "Use": [_use(task, name, repository or "THIS DIRECTORY")] if task and name else [],
    }
    title = repository.rpartition("/")[2] if repository else _TITLE
    return _CARD.format(
        front_matter=front_matter(name, _TAGS, _model_index(own, task, title)),
        title=title,
        base=code(str(name)),
        num_virtual_tokens=own["num_virtual_tokens"],
        width=own["width"],
        version=own["library_version"],
        placement=placement,
        sections=sections_text(sections),
    )


def front_matter(base: str | None, tags: Sequence[str], results: Sequence[Mapping[str, Any]] = ()) -> str:
    """The YAML in front of a card, without the lines around it.

    Args:
        base: The base model's name; one that cannot be a hub model's is left out, since the hub takes no other.
        tags: The card's tags.
        results: What was measured, as the hub's `model-index`.
    """
    about: dict[str, Any] = {"library_name": "ptuning"}
    if base is not None and _HUB_NAME.fullmatch(base):
        about["base_model"] = base
    about["tags"] = list(tags)
    if results:
        about["model-index"] = list(results)
    return yaml.safe_dump(about, sort_keys=False, allow_unicode=True)


def _model_index(own: Mapping[str, Any], task: Task | None, name: str) -> list[dict[str, Any]]:
    """The prompt's own results in the hub's form; rows and 95 % interval stand beside each metric."""
    measured = own["results"].get(_OWN_RESULT)
    if task is None or measured is None:
        return []
    low, high = measured["interval"]
    metrics = [
        {"type": "accuracy", "value": measured.get("accuracy"), "args": {"interval_95": [low, high]}},
        {"type": "f1", "name": "macro-F1", "value": measured.get("macro_f1"), "args": {"average": "macro"}},
        {"type": "loss", "name": "loss a token", "value": measured.get("loss")},
    ]
    found = [each for each in metrics if each["value"] is not None]
    kind = "text-classification" if task.is_classification else "text-generation"
    about = {"task": {"type": kind}, "dataset": _dataset(own["training"], measured["num_rows"]), "metrics": found}
    return [{"name": name, "results": [about]}] if found else []


def _dataset(training: Mapping[str, Any], num_rows: int) -> dict[str, Any]:
    """The rows that were measured: the file's name without its folders, or the hub's data set."""
    split = "validation" if str(training.get("results_of", "")).startswith("validation") else "test"
    source = str((training.get("data") or {}).get(split) or f"{split} rows")
    name = source if _HUB_NAME.fullmatch(source) and "." not in source else re.split(r"[/\\]", source)[-1]
    return {"type": name, "name": name, "split": split, "args": {"num_rows": num_rows}}


def _use(task: Task, base: str, place: str) -> str:
    """How the prompt is loaded and asked."""
    row = json.dumps(dict.fromkeys(Template.parse(task.template).field_names, "..."))
    method = "classify" if task.is_classification else "generate"
    return _USE.format(base=json.dumps(base), place=json.dumps(place), method=method, row=row)


def _verdict_lines(verdict: Mapping[str, Any]) -> list[str]:
    """What `ptuning inspect` said of what the prompt decodes to."""
    if not verdict.get("word"):
        return []
    judged = f"judged on {code(verdict['judged_on'])}" if verdict.get("judged_on") else "judged on rows"
    lines = [f"**{_plain(verdict['word'])}**, {judged}. {_plain(verdict['sentence'])}"]
    return [*lines, "", _plain(verdict["effect"])] if verdict.get("effect") else lines


def _plain(text: str) -> str:
    """Text of one line that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def base_lines(name: str, fingerprint: Mapping[str, Any], file: str) -> list[str]:
    """Which base something belongs to.

    Args:
        name: The base's.
        fingerprint: Its architecture, a sample of its weights and their precision.
        file: Where the sample stands.
    """
    digest = hashlib.sha256(json.dumps(fingerprint["weights"]).encode()).hexdigest()
    shape = ", ".join(f"{key} {value}" for key, value in fingerprint["architecture"].items())
    return [
        f"- {code(name)} in {fingerprint['dtype']}: {code(shape)}",
        f"- fingerprint: a sample of its weights, in `{file}`; SHA-256 {code(digest)}",
    ]


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
