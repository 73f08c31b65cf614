"""Indexes that find the texts nearest to a row, by shared words (BM25) or by the base's mean hidden states.

Both are exact: a row is compared with every text. Knows nothing of what the texts are, or of what is done with them.
"""

import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ptuning.comparison.reading import hidden_states, plain_text
from ptuning.comparison.storage import Saved, write_tensors
from ptuning.data import Row, Task
from ptuning.errors import DataError
from ptuning.model import Backbone

VECTORS = "vectors.safetensors"
"""The file of a `StateIndex`; without it the vectors are made anew."""
_CENTER = "center.safetensors"


class Index(ABC):
    """Tells how near texts are to rows."""

    name: ClassVar[str]
    """What it compares."""
    seconds: float
    """Seconds that building it took."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """The bytes that it takes in memory."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Writes what cannot be made again from the texts."""

    @abstractmethod
    def nearness(self, rows: Sequence[Row]) -> Tensor:
        """How near each of the N texts is to each row, `[Q, N]` fp32; more is nearer."""


class WordIndex(Index):
    """BM25 of the words.

    Args:
        task: The task whose columns rows are asked by.
        texts: The texts.

    Raises:
        DataError: For texts without a single word.
    """

    name = "shared words"

    def __init__(self, task: Task, texts: Sequence[str]) -> None:
        started, self._task = time.perf_counter(), task
        words = _tokenized(texts)
        if not words.vocab:
            raise DataError(f"{len(texts):,} texts without a single word", "words to compare", "Leave this way out")
        self._index = importlib.import_module("bm25s").BM25()
        self._index.index(words, show_progress=False)
        self.seconds = time.perf_counter() - started

    @property
    def num_bytes(self) -> int:
        """As in `Index`."""
        arrays = (self._index.scores[name] for name in ("data", "indices", "indptr"))
        return sum(each.nbytes for each in arrays) + sum(len(word.encode()) for word in self._index.vocab_dict)

    def save(self, directory: Path) -> None:
        """As in `Index`: nothing, since building it anew is as fast as reading it."""

    def nearness(self, rows: Sequence[Row]) -> Tensor:
        """As in `Index`."""
        asked = _tokenized([plain_text(self._task, row) for row in rows], return_ids=False)
        known = [self._index.get_tokens_ids(words) for words in asked]
        return torch.stack([torch.from_numpy(self._index.get_scores_from_ids(ids)) for ids in known])


def _tokenized(texts: Sequence[str], return_ids: bool = True) -> Any:
    """The words of texts: as bm25s' `Tokenized`, or as a list for each text."""
    tokenize = importlib.import_module("bm25s").tokenize
    pattern = r"(?u)\b\w+\b"
    return tokenize(texts, stopwords=None, token_pattern=pattern, return_ids=return_ids, show_progress=False)


class StateIndex(Index):
    """The cosine of mean hidden states, from which their own mean is taken: what all share says nothing.

    Args:
        backbone: The frozen model.
        task: The words that rows are asked with.
        vectors_NH: The texts' vectors, of length 1.
        center_H: What is taken from the state of a row that is asked.
        seconds: Seconds that building took.
    """

    name = "hidden states"

    def __init__(
        self, backbone: Backbone, task: Task, vectors_NH: Tensor, center_H: Tensor, seconds: float = 0.0
    ) -> None:
        self._backbone, self._task, self.seconds = backbone, task, seconds
        self.vectors_NH, self.center_H = vectors_NH, center_H

    @classmethod
    def of_rows(cls, backbone: Backbone, task: Task, rows: Sequence[Row]) -> "StateIndex":
        """The index of rows that are of the same kind as those that are asked."""
        started = time.perf_counter()
        _, mean_NH = hidden_states(backbone, task, rows)
        return cls(backbone, task, _centered(mean_NH), mean_NH.mean(dim=0), time.perf_counter() - started)

    @classmethod
    def of_texts(cls, backbone: Backbone, task: Task, texts: Sequence[str], asked: Sequence[Row]) -> "StateIndex":
        """The index of texts of another kind than rows, so each kind has a mean of its own.

        Args:
            backbone: The frozen model.
            task: The words that rows are asked with.
            texts: The texts.
            asked: Some rows, whose mean stands for that of all.
        """
        started, rows = time.perf_counter(), [Row({"text": text}, f"text {i}") for i, text in enumerate(texts)]
        _, mean_NH = hidden_states(backbone, Task("{text}"), rows)
        vectors_NH, center_H = _centered(mean_NH), hidden_states(backbone, task, asked)[1].mean(dim=0)
        return cls(backbone, task, vectors_NH, center_H, time.perf_counter() - started)

    @classmethod
    def load(cls, saved: Saved, task: Task, texts: Sequence[Row]) -> "StateIndex":
        """Brings back what `save` wrote; vectors whose file is gone are made anew, since texts have changed.

        Args:
            saved: The way's files.
            task: The words that the texts are read with.
            texts: The texts.
        """
        base, width = saved.base, saved.base.width
        center_H = saved.tensors(_CENTER, {"center_H": [width]})["center_H"]
        if (saved.directory / VECTORS).exists():
            vectors_NH = saved.tensors(VECTORS, {"vectors_NH": [len(texts), width]})["vectors_NH"]
        else:
            vectors_NH = _centered(hidden_states(base, task, texts)[1])
        return cls(base, saved.task, vectors_NH, center_H)

    def save(self, directory: Path) -> None:
        """As in `Index`."""
        write_tensors(directory / VECTORS, {"vectors_NH": self.vectors_NH})
        write_tensors(directory / _CENTER, {"center_H": self.center_H})

    @property
    def num_bytes(self) -> int:
        """As in `Index`."""
        return self.vectors_NH.nbytes

    def nearness(self, rows: Sequence[Row]) -> Tensor:
        """As in `Index`."""
        _, mean_QH = hidden_states(self._backbone, self._task, rows)
        return _unit(mean_QH - self.center_H) @ self.vectors_NH.T


def _centered(mean_NH: Tensor) -> Tensor:
    """The texts' vectors, from which their own mean is taken."""
    return _unit(mean_NH - mean_NH.mean(dim=0))


def _unit(state_NH: Tensor) -> Tensor:
    """The same directions with length 1."""
    return state_NH / state_NH.norm(dim=1, keepdim=True).clamp(min=1e-9)


def nearest(nearness_QN: Tensor, number: int) -> Tensor:
    """The places of the nearest texts of each row, `[Q, k]`, the nearest first."""
    return nearness_QN.topk(min(number, nearness_QN.shape[1]), dim=1).indices


def balanced(nearness_QN: Tensor, labels_N: Tensor, number: int) -> Tensor:
    """The places of near texts of each row, of each label as many as possible, `[Q, k]`, the nearest first.

    Labels take turns, each with its nearest text that is left; in the last turn those go first whose text is nearer.
    """
    places, turns, values = list[Tensor](), list[Tensor](), list[Tensor]()
    for label in labels_N.unique():
        own_M = (labels_N == label).nonzero()[:, 0]
        top = nearness_QN[:, own_M].topk(min(number, len(own_M)), dim=1)
        places.append(own_M[top.indices])
        values.append(top.values)
        turns.append(torch.arange(top.values.shape[1]).expand_as(top.values))
    places_QM, turns_QM, values_QM = (torch.cat(parts, dim=1) for parts in (places, turns, values))
    by_value_QM = values_QM.argsort(dim=1, descending=True, stable=True)
    by_turn_QM = turns_QM.gather(1, by_value_QM).argsort(dim=1, stable=True)
    first_QK = by_turn_QM[:, :number].sort(dim=1).values  # of the taken ones the nearest first again
    return places_QM.gather(1, by_value_QM.gather(1, first_QK))
