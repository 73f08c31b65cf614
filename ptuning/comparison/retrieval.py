"""Few-shot prompting with examples that are retrieved for each row: the nearest training rows.

Nearness is that of the base's own mean hidden states, or BM25's of the words. Knows nothing of training.
"""

import json
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import ClassVar

import torch
from safetensors.torch import save_file

from ptuning.comparison.features import require_package
from ptuning.comparison.indexes import Index, StateIndex, WordIndex, balanced, nearest
from ptuning.comparison.prompting import (
    READS_TEXT,
    Prompted,
    demonstration,
    fitting_numbers,
    with_demonstrations,
    write_own,
)
from ptuning.comparison.protocol import Fact, Facts, IndexCosts, Job, Way, accuracy, labels_of
from ptuning.comparison.reading import plain_text
from ptuning.data import Row

_AT_ONCE = Fact(True, "put it into the index")
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


@dataclass
class Retrieved(Prompted):
    """Words behind what is nearest to each row."""

    lookup: Lookup | None = None
    """Finds it."""
    index_costs: IndexCosts | None = None

    def __post_init__(self) -> None:
        self.show = self.lookup

    def with_costs(self, job: Job) -> "Retrieved":
        """The same with the tokens that it adds to a request, and with what its index costs."""
        assert self.lookup is not None
        index, times = self.lookup.index, list[float]()
        for row in islice(cycle(job.choosing), 3 * job.effort.num_timings):
            started = time.perf_counter()
            self.lookup([row])
            times.append(time.perf_counter() - started)
        costs = IndexCosts(index.num_bytes, index.seconds, 1000 * median(times))
        return replace(self, extra_tokens=self.added_tokens(job), index_costs=costs)

    def save(self, directory: Path) -> None:
        """As in `Fitted`."""
        assert self.lookup is not None
        write_own(directory, {"kind": "retrieval"})
        (directory / "rows.json").write_text(json.dumps(list(self.lookup.texts)), encoding="utf-8")
        if isinstance(self.lookup.index, StateIndex):
            save_file({"vectors": self.lookup.index.vectors_NH.contiguous()}, directory / "vectors.safetensors")


class RetrievedExamples(Way):
    """A way that shows each row the nearest training rows; validation rows choose how many, and whether balanced."""

    depends_on_chance = False
    facts: ClassVar[Facts] = Facts(learns=False, rows_count_at_once=_AT_ONCE, **READS_TEXT)

    @abstractmethod
    def index_of(self, job: Job) -> Index:
        """The index of the training rows."""

    def fit(self, job: Job) -> Retrieved:
        """As in `Way`."""
        index, texts = self.index_of(job), [demonstration(job.task, row) for row in job.train]
        tried = list[tuple[float, Retrieved]]()
        for number in fitting_numbers(job):
            for selection, labels in (("nearest", None), ("balanced", labels_of(job.task, job.train))):
                lookup, chosen = Lookup(index, texts, number, labels), {"examples": str(number), "selection": selection}
                found = Retrieved(job.backbone, with_demonstrations(job.task), lookup=lookup, chosen=chosen)
                tried.append((accuracy(found, job.task, job.choosing), found))
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
