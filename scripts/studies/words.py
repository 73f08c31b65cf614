"""Prompting without any training: the task's words, with demonstrations in front of them or none.

Knows nothing of models or scores.
"""

from collections.abc import Sequence
from dataclasses import replace

from ptuning.data import Row, Task, Template
from studies.tasks import few


def with_demonstrations(task: Task, rows: Sequence[Row], num_shots: int, seed: int) -> Task:
    """The same task without virtual tokens, its words behind those of some rows and their answers.

    Args:
        task: The task.
        rows: What the demonstrations are drawn from, in the shares of the labels.
        num_shots: How many there are; 0: zero-shot.
        seed: Seed of the draw.
    """
    words = Template.parse(task.template).without_prompt()
    shown = "".join(f"{_asked(words, row)}{_answered(task, row)}\n\n" for row in few(rows, num_shots, seed))
    escaped = shown.replace("{", "{{").replace("}", "}}")
    return replace(task, template=escaped + words.text, max_length=None)


def _asked(words: Template, row: Row) -> str:
    return "".join(map(str, words.fill(row.values)))


def _answered(task: Task, row: Row) -> str:
    answer = task.answer_text(row.values)
    return task.verbalizer[answer] if task.verbalizer else answer
