"""The teacher: the frozen base that reads a long text in front of each row. It answers, and says how sure it was.

Knows nothing of students or files.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptuning.comparison import Writing
from ptuning.data import Row, Task
from ptuning.distillation.answer_logits import answer_logits
from ptuning.distillation.answers import answers_of
from ptuning.distillation.long_text import LongText
from ptuning.forward import ReadOptions
from ptuning.model import Backbone
from ptuning.training import SoftTargets


@dataclass(frozen=True)
class Teacher:
    """The frozen base with the text."""

    backbone: Backbone
    """The base."""
    text: LongText
    """What it reads in front of each row."""
    writing: Writing
    """When an answer that it writes ends."""
    num_kept: int
    """How many of its most likely tokens are kept at a position."""
    options: ReadOptions = ReadOptions()
    """How rows are read."""

    def answered(self, rows: Sequence[Row], progress: Callable[[int], object] = lambda _: None) -> list[Row]:
        """The rows with its own answers: its most likely label, or what it writes greedily.

        Args:
            rows: The rows; whatever they answer is not read, but for labelled rows of the text.
            progress: Is called with the number of rows that were answered since the last call.
        """
        found = dict[int, Row]()
        for places, task in self._parts(rows):
            own = [rows[i] for i in places]
            (column,) = task.answer_columns
            answers = answers_of(self.backbone, task, self._no_prompt, own, self.writing, self.options)
            for i, answer in zip(places, answers, strict=True):
                found[i] = Row({**rows[i].values, column: answer}, rows[i].where)
            progress(len(places))
        return [found[i] for i in range(len(rows))]

    def targets(self, rows: Sequence[Row], progress: Callable[[int], object] = lambda _: None) -> SoftTargets:
        """What it says at each token of the rows' answers; arguments as in `answered`, with answers."""
        order, parts = list[int](), list[SoftTargets]()
        for places, task in self._parts(rows):
            examples = self.backbone.coder(task).encode([rows[i] for i in places])
            for batch, logits_NV in answer_logits(self.backbone, self._no_prompt, examples, self.options):
                lengths = [len(examples[i].answer_ids) for i in batch]
                parts.append(SoftTargets.of_logits(logits_NV, lengths, self.num_kept))
                order += [places[i] for i in batch]
                progress(len(batch))
        found = SoftTargets.joined(parts).of_rows(torch.tensor(order).argsort().tolist())
        end, is_written = self.backbone.tokenizer.eos_token_id, not self.text.task.is_classification
        # The teacher goes on behind an answer with what stop_strings cut off; the student is to end it.
        return found.ending_with(end) if is_written and self.writing.stop_strings and end is not None else found

    def _parts(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], Task]]:
        """The places of rows that are read behind the same text, and the task with it."""
        shown = [i for i, row in enumerate(rows) if self.text.shows(row)]
        others = sorted(set(range(len(rows))) - set(shown))
        if others:
            yield others, self.text.task_with_it()
        for i in shown:
            yield [i], self.text.task_with_it(without=rows[i])

    @property
    def _no_prompt(self) -> Tensor:
        return torch.zeros(0, self.backbone.width)
