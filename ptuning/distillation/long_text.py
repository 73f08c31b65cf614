"""The text that virtual tokens take the place of: words, and labelled rows behind them.

Knows nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ptuning.comparison import demonstration
from ptuning.data import Row, Task


@dataclass(frozen=True)
class LongText:
    """A text that stands where the task has its slot."""

    task: Task
    """The task, with one slot."""
    words: str = ""
    """What a person wrote."""
    rows: Sequence[Row] = ()
    """Labelled rows that stand behind the words."""

    def text(self, without: Row | None = None) -> str:
        """The whole text.

        Args:
            without: A row that is left out where it is one of the labelled ones: it must not be shown its own answer.
        """
        shown = [row for row in self.rows if without is None or not self._asks_the_same(row, without)]
        return self.words + "".join(demonstration(self.task, row) for row in shown)

    def task_with_it(self, without: Row | None = None) -> Task:
        """The task as the teacher reads it: the text in the slot's place, and rows as long as the model allows."""
        return replace(self.task.with_texts([self.text(without)]), max_length=None)

    def shows(self, row: Row) -> bool:
        """Whether the row is one of the labelled ones."""
        return any(self._asks_the_same(each, row) for each in self.rows)

    def with_rows(self, number: int) -> "LongText":
        """The same words with the first so many of the rows."""
        return replace(self, rows=self.rows[:number])

    def _asks_the_same(self, one: Row, other: Row) -> bool:
        names = [name for name in self.task.columns if name not in self.task.answer_columns]
        return all(one.values[name] == other.values[name] for name in names)
