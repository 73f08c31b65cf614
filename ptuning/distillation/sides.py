"""What a distillation compares on the same rows: no text, the text, the student, and what else P tokens could hold.

Knows nothing of how sides are measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ptuning.data import Task, text_ids
from ptuning.distillation.long_text import LongText
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt

NONE, TEXT, STUDENT = "no text", "the text", "distilled prompt"
CUT, FEWER, TUNED = "the text, cut", "fewer demonstrations", "tuned prompt"


@dataclass(frozen=True)
class Side:
    """One way to ask the frozen base."""

    name: str
    """What it is called."""
    task: Task
    """The words, with a slot where there is a prompt."""
    prompt: SoftPrompt | None = None
    """The prompt; None: words alone."""
    note: str = ""
    """What else to say of it."""


def without_prompts(backbone: Backbone, text: LongText, with_baselines: bool) -> list[Side]:
    """The sides that need no training.

    Args:
        backbone: The frozen model, for its tokenizer.
        text: The text.
        with_baselines: Whether what P tokens of text can hold is among them.
    """
    sides = [Side(NONE, text.task.without_prompt()), Side(TEXT, text.task_with_it())]
    if not with_baselines:
        return sides
    most = text.task.num_virtual_tokens
    cut = _cut(backbone, text.text(), most)
    sides.append(Side(CUT, LongText(text.task, cut).task_with_it(), note=f"its first {most} tokens"))
    number = _num_that_fit(backbone, text, most)
    if number:
        fewer = LongText(text.task, rows=text.rows[:number])
        told = f"{number} of {len(text.rows)} in {_length(backbone, fewer.text())} tokens"
        sides.append(Side(FEWER, fewer.task_with_it(), note=told))
    return sides


def _cut(backbone: Backbone, text: str, most: int) -> str:
    """The beginning of a text that has at most so many tokens."""
    ids: Sequence[int] = text_ids(backbone.tokenizer, [text])[0][:most]
    return str(backbone.tokenizer.decode(ids))


def _num_that_fit(backbone: Backbone, text: LongText, most: int) -> int:
    """How many of the demonstrations, the first ones, have together at most so many tokens."""
    numbers = range(len(text.rows), 0, -1)
    fewer = (LongText(text.task, rows=text.rows[:number]).text() for number in numbers)
    return next((number for number, own in zip(numbers, fewer, strict=True) if _length(backbone, own) <= most), 0)


def _length(backbone: Backbone, text: str) -> int:
    return len(text_ids(backbone.tokenizer, [text])[0])
