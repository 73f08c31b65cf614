"""Answers rows with the frozen base: its most likely label, or what it writes greedily.

Knows nothing of teachers or students.
"""

from collections.abc import Sequence

from ptuning.comparison import Writing
from ptuning.data import Row, Task
from ptuning.evaluation import score_rows
from ptuning.forward import Prompt, ReadOptions
from ptuning.inference import write_rows
from ptuning.model import Backbone


def answers_of(
    backbone: Backbone, task: Task, prompt: Prompt, rows: Sequence[Row], writing: Writing, options: ReadOptions
) -> list[str]:
    """The answer to each row.

    Args:
        backbone: The frozen model.
        task: The words, with a slot where there is a prompt.
        prompt: The soft prompt; of no virtual tokens for words alone.
        rows: The rows; their own answers are not read.
        writing: When a written answer ends.
        options: How rows are read.
    """
    coder = backbone.coder(task)
    if not task.is_classification:
        examples = coder.encode_prompts(rows, writing.max_new_tokens)
        return write_rows(backbone, prompt, examples, writing.max_new_tokens, writing.stop_strings, options)
    scores = score_rows(backbone, prompt, coder.encode(rows), coder.label_ids, options)
    assert scores.labels_NC is not None
    return [coder.labels[i] for i in scores.labels_NC.argmax(dim=1).tolist()]
