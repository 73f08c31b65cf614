"""Few-shot prompting with examples that are retrieved for each row: the nearest training rows.

Nearness is that of the base's own mean hidden states, or BM25's of the words. Knows nothing of training.
"""

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy
from safetensors.torch import save_file
from torch import Tensor

from ptuning.comparison.features import require_package
from ptuning.comparison.prompting import (
    READS_TEXT,
    Prompted,
    demonstration,
    fitting_numbers,
    with_demonstrations,
    write_own,
)
from ptuning.comparison.protocol import Fact, Facts, Job, Way
from ptuning.comparison.reading import hidden_states, plain_text
from ptuning.data import Row

Nearest = Callable[[Sequence[Row], int], numpy.ndarray]
"""Rows and k -> the indices of the k nearest training rows of each, `[N, k]`, the nearest first."""
_AT_ONCE = Fact(True, "put it into the index")


@dataclass
class Retrieved(Prompted):
    """Words behind the training rows that are nearest to each row."""

    demonstrations: Sequence[str] = ()
    """The training rows with their answers."""
    vectors_NH: Tensor | None = None
    """Their vectors; None where words are compared."""

    def save(self, directory: Path) -> None:
        """As in `Fitted`."""
        write_own(directory, {"kind": "retrieval"})
        (directory / "rows.json").write_text(json.dumps(list(self.demonstrations)), encoding="utf-8")
        if self.vectors_NH is not None:
            save_file({"vectors": self.vectors_NH.contiguous()}, directory / "vectors.safetensors")


class RetrievedByHiddenStates(Way):
    """The nearest training rows by the base's own mean hidden state."""

    name, title = "retrieved-hidden", "for each row the nearest labelled examples, by the base's hidden states"
    depends_on_chance = False
    facts: ClassVar[Facts] = Facts(learns=False, rows_count_at_once=_AT_ONCE, **READS_TEXT)

    def fit(self, job: Job) -> Prompted:
        """As in `Way`."""
        _, mean_NH = hidden_states(job.backbone, job.words, job.train)
        center_H = mean_NH.mean(dim=0)  # what all rows share says nothing about which are near

        def unit(state_NH: Tensor) -> Tensor:
            return (state_NH - center_H) / (state_NH - center_H).norm(dim=1, keepdim=True).clamp(min=1e-9)

        index_NH = unit(mean_NH)

        def nearest(rows: Sequence[Row], number: int) -> numpy.ndarray:
            query_QH = unit(hidden_states(job.backbone, job.words, rows)[1])
            found: numpy.ndarray = (query_QH @ index_NH.T).topk(number, dim=1).indices.numpy()
            return found

        return _chosen(job, nearest, index_NH)


class RetrievedByWords(Way):
    """The nearest training rows by BM25."""

    name, title = "retrieved-bm25", "for each row the nearest labelled examples, by shared words (BM25)"
    depends_on_chance = False
    facts: ClassVar[Facts] = Facts(learns=False, rows_count_at_once=_AT_ONCE, **READS_TEXT)

    def require(self, job: Job) -> None:
        """As in `Way`."""
        require_package("bm25s", "bm25s")

    def fit(self, job: Job) -> Prompted:
        """As in `Way`."""
        bm25s = importlib.import_module("bm25s")

        def words(rows: Sequence[Row]) -> Any:
            texts = [plain_text(job.task, row) for row in rows]
            return bm25s.tokenize(texts, stopwords=None, token_pattern=r"(?u)\b\w+\b", show_progress=False)

        index = bm25s.BM25()
        index.index(words(job.train), show_progress=False)

        def nearest(rows: Sequence[Row], number: int) -> numpy.ndarray:
            found: numpy.ndarray = index.retrieve(words(rows), k=number, show_progress=False, return_as="documents")
            return found

        return _chosen(job, nearest)


def _chosen(job: Job, nearest: Nearest, vectors_NH: Tensor | None = None) -> Prompted:
    """The number of examples that validation rows choose."""
    task, texts = with_demonstrations(job.task), [demonstration(job.task, row) for row in job.train]
    tried = list[tuple[float, Prompted]]()
    for number in fitting_numbers(job):

        def show(rows: Sequence[Row], number: int = number) -> list[str]:
            return ["".join(texts[i] for i in reversed(own)) for own in nearest(rows, number).tolist()]

        chosen = {"examples": str(number)}
        found = Retrieved(job.backbone, task, show, chosen=chosen, demonstrations=texts, vectors_NH=vectors_NH)
        tried.append((job.score(found), found))
    return max(tried, key=lambda each: each[0])[1].with_costs(job)
