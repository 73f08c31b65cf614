"""Prompting without any training: the task's words, with demonstrations in front of them or none.

Knows nothing of models or scores.
"""

from collections.abc import Sequence
from dataclasses import replace

from ptuning.comparison import demonstration
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
    shown = "".join(demonstration(task, row) for row in few(rows, num_shots, seed))
    escaped = shown.replace("{", "{{").replace("}", "}}")
    return replace(task, template=escaped + words.text, max_length=None)
