"""Few-shot prompting with examples that are retrieved for each row: the nearest training rows.

Nearness is that of the base's own mean hidden states, or BM25's of the words. Knows nothing of training.
"""

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, product
from pathlib import Path
from statistics import median
from typing import ClassVar, Self

import torch

from ptuning.comparison.budget import tries_within
from ptuning.comparison.indexes import VECTORS, Index, StateIndex, WordIndex, balanced, nearest
from ptuning.comparison.prompting import (
    READS_TEXT,
    Prompted,
    demonstration,
    fitting_numbers,
    with_demonstrations,
)
from ptuning.comparison.protocol import Fact, Facts, IndexCosts, Job, Way, labels_of, require_package
from ptuning.comparison.reading import plain_text
from ptuning.comparison.storage import Saved, write_own, write_texts
from ptuning.data import Row, Task, as_row
from ptuning.errors import DataError
from ptuning.model import Backbone

_FILE = "rows.json"
AT_ONCE = Fact(True, f"write it into {_FILE}, delete {VECTORS} if there is one, load the way again")
"""Why a new row counts without fitting again, for what is looked up."""
_NOTHING: Mapping[str, str] = {}
_ROWS_AT_ONCE = 64  # that are looked up together: with a million texts their nearness takes 256 MB


@dataclass(frozen=True)
class Lookup:
    """Finds what stands in front of each row, the nearest last."""

    index: Index
    """What tells nearness."""
    texts: Sequence[str]
    """What is retrieved, as it stands in front of a row."""
    number: int
    """How many stand there."""
    labels: Sequence[int] | None = None
    """The texts' labels, to take the same number of each; None: the nearest are taken, whatever they are."""

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        """The text in front of each row."""
        parts = (rows[i : i + _ROWS_AT_ONCE] for i in range(0, len(rows), _ROWS_AT_ONCE))
        return ["".join(self.texts[i] for i in reversed(own)) for part in parts for own in self.places(part)]

    def places(self, rows: Sequence[Row]) -> list[list[int]]:
        """The places of the texts in front of each row, the nearest first."""
        nearness_QN = self.index.nearness(rows)
        if self.labels is None:
            return nearest(nearness_QN, self.number).tolist()
        return balanced(nearness_QN, torch.tensor(self.labels), self.number).tolist()


@dataclass(kw_only=True)
class Retrieved(Prompted):
    """Words behind what is nearest to each row."""

    kind: ClassVar[str] = "retrieval"
    """What `way.json` calls it."""
    words: Task
    """The words that rows are asked with."""
    lookup: Lookup
    """Finds what is near."""
    rows: Sequence[Row]
    """What can be found: training rows, or passages with the column `text`."""
    index_costs: IndexCosts | None = None

    @classmethod
    def of(
        cls, backbone: Backbone, words: Task, lookup: Lookup, rows: Sequence[Row], chosen: Mapping[str, str] = _NOTHING
    ) -> Self:
        """The way with a look-up; arguments as the fields."""
        task = with_demonstrations(words)
        return cls(backbone, task, lookup, words=words, lookup=lookup, rows=rows, chosen=chosen)

    def with_costs(self, job: Job) -> "Retrieved":
        """The same with the tokens that it adds to a request, and with what its index costs."""
        index, times = self.lookup.index, list[float]()
        for row in islice(cycle(job.choosing), 3 * job.effort.num_timings):
            started = time.perf_counter()
            self.lookup([row])
            times.append(time.perf_counter() - started)
        costs = IndexCosts(index.num_bytes, index.seconds, 1000 * median(times))
        return replace(self, extra_tokens=self.added_tokens(job), index_costs=costs)

    def save(self, directory: Path) -> None:
        """As in `Fitted`."""
        own = {
            "by": self.lookup.index.name,
            "number": self.lookup.number,
            "is_balanced": self.lookup.labels is not None,
        }
        write_own(directory, {"kind": self.kind, "task": vars(self.words), **own})
        write_texts(directory / _FILE, [row.values for row in self.rows])
        self.lookup.index.save(directory)

    @classmethod
    def load(cls, saved: Saved) -> Self:
        """Brings it back."""
        task, rows = saved.task, saved_rows(saved, saved.task.columns)
        if task.verbalizer is not None:
            unknown = {row.values[task.label_column] for row in rows} - set(task.verbalizer)
            if unknown:
                raise saved.broken(f"its rows have other labels: {', '.join(sorted(unknown))[:200]}")
        elif saved.own.get("is_balanced"):
            raise saved.broken("it is balanced, and has no labels")
        labels = labels_of(task, rows) if saved.own.get("is_balanced") else None
        texts, searched = [demonstration(task, row) for row in rows], [plain_text(task, row) for row in rows]
        return cls.of(saved.base, task, saved_lookup(saved, texts, searched, task, rows, labels), rows)


def saved_rows(saved: Saved, columns: Sequence[str]) -> list[Row]:
    """What a saved way can find; raises `PromptError` where there is nothing, or a column is missing."""
    try:
        rows = [as_row(each, f"row {i}", columns) for i, each in enumerate(saved.texts(_FILE))]
    except DataError as error:
        raise saved.broken(error.received) from error
    if not rows:
        raise saved.broken(f"{_FILE} holds no rows")
    return rows


def saved_lookup(
    saved: Saved,
    texts: Sequence[str],
    searched: Sequence[str],
    task: Task,
    rows: Sequence[Row],
    labels: Sequence[int] | None = None,
) -> Lookup:
    """The look-up of a saved way.

    Args:
        saved: Its files.
        texts: What stands in front of a row.
        searched: The same as words are searched in.
        task: The words that the base reads them with.
        rows: The same as it reads them.
        labels: As in `Lookup`.
    """
    number = saved.told("number")
    if number < 1:
        raise saved.broken(f"number: {number}")
    if saved.told("by") == StateIndex.name:
        return Lookup(StateIndex.load(saved, task, rows), texts, number, labels)
    require_package("bm25s", "bm25s")
    return Lookup(WordIndex(saved.task, searched), texts, number, labels)


class RetrievedExamples(Way):
    """A way that shows each row the nearest training rows.

    Validation rows choose how many, and where there are labels, whether as many of each.
    """

    depends_on_chance = False
    facts: ClassVar[Facts] = Facts(learns=False, rows_count_at_once=AT_ONCE, **READS_TEXT)

    @abstractmethod
    def index_of(self, job: Job) -> Index:
        """The index of the training rows."""

    def fit(self, job: Job) -> Retrieved:
        """As in `Way`."""
        index, texts = self.index_of(job), [demonstration(job.task, row) for row in job.train]
        tried = list[tuple[float, Retrieved]]()
        selections: dict[str, Sequence[int] | None] = {"nearest": None}
        if job.task.is_classification:
            selections["balanced"] = labels_of(job.task, job.train)
        for number, selection in tries_within(job, product(fitting_numbers(job), selections)):
            lookup = Lookup(index, texts, number, selections[selection])
            chosen = {"examples": str(number), "selection": selection}
            found = Retrieved.of(job.backbone, job.words, lookup, job.train, chosen)
            tried.append((job.score(found), found))
        return max(tried, key=lambda each: each[0])[1].with_costs(job)


class RetrievedByHiddenStates(RetrievedExamples):
    """The nearest training rows by the base's own mean hidden state."""

    name, title = "retrieved-hidden", "for each row the nearest labelled examples, by the base's hidden states"

    def index_of(self, job: Job) -> StateIndex:
        """As in `RetrievedExamples`."""
        return StateIndex.of_rows(job.backbone, job.words, job.train)


class RetrievedByWords(RetrievedExamples):
    """The nearest training rows by BM25."""

    name, title = "retrieved-bm25", "for each row the nearest labelled examples, by shared words (BM25)"

    def require(self, job: Job) -> None:
        """As in `Way`."""
        require_package("bm25s", "bm25s")

    def index_of(self, job: Job) -> WordIndex:
        """As in `RetrievedExamples`."""
        return WordIndex(job.task, [plain_text(job.task, row) for row in job.train])
