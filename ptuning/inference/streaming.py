"""Answers as they are written: a thread writes, the reader gets the text that is certain.

Knows nothing of prompts' names or of tasks.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from ptuning.data import Example
from ptuning.errors import PromptError
from ptuning.forward import Prompt
from ptuning.inference.generation import write
from ptuning.inference.row_text import RowText, WritingOptions
from ptuning.model import Backbone

PromptedRows: TypeAlias = tuple[Prompt, Sequence[int], Sequence[Example]]
"""A batch to be written on: its prompt, its rows' numbers, and the rows."""


class Piece(NamedTuple):
    """Some text of a row's answer, as it comes."""

    row: int
    """The row it belongs to, counted from 0."""
    text: str
    """What follows the row's pieces so far."""


class _Cancelled(StoppingCriteria):
    """Ends all rows once nobody listens any more."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)


class _RowStreamer(BaseStreamer):
    """Hands each step's tokens on, a token a row; the rows as they were given, which come first, are left out."""

    def __init__(self, rows: Sequence[int], hand_on: Callable[[list[tuple[int, int]]], None]) -> None:
        self._rows, self._hand_on, self._has_begun = rows, hand_on, False

    def put(self, value: Tensor) -> None:
        if self._has_begun:
            self._hand_on(list(zip(self._rows, value.tolist(), strict=True)))
        self._has_begun = True

    def end(self) -> None:
        """Nothing is held back here."""


def stream(backbone: Backbone, batches: Sequence[PromptedRows], settings: WritingOptions) -> Iterator[Piece]:
    """Writes batch after batch in a thread of its own, and yields the text as it comes.

    Args:
        backbone: The frozen model.
        batches: What to write on.
        settings: How.

    Raises:
        PromptError: Where tokens do not come one by one: with beams, and with assisted generation.
    """
    if settings.num_beams > 1 or settings.is_assisted:
        received = "generate(stream=True) with beams or assisted generation"
        raise PromptError(received, "tokens that come one by one", "Leave one of the two out")
    return _streamed(backbone, batches, settings)


def _streamed(backbone: Backbone, batches: Sequence[PromptedRows], settings: WritingOptions) -> Iterator[Piece]:
    steps: queue.Queue[Any] = queue.Queue()  # tokens of a step, ended rows, an error, or None behind all
    cancelled = threading.Event()

    def work() -> None:
        try:
            for prompt, rows, examples in batches:
                listening = {"streamer": _RowStreamer(rows, steps.put), "stopping_criteria": [_Cancelled(cancelled)]}
                write(backbone, prompt, examples, settings, **listening)
                if cancelled.is_set():
                    return
                steps.put(_Ended(rows))
        except Exception as error:  # it is raised again where the text is read
            steps.put(error)
        finally:
            steps.put(None)

    texts = {row: RowText(backbone, settings) for _, rows, _ in batches for row in rows}
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while (step := steps.get()) is not None:
            if isinstance(step, Exception):
                raise step
            yield from _pieces(texts, step)
    finally:
        cancelled.set()
        worker.join()


class _Ended(tuple[int, ...]):
    """The rows of a batch whose writing has ended."""


def _pieces(texts: dict[int, RowText], step: Any) -> Iterator[Piece]:
    """The new text of a step, or what was held back of rows that have ended."""
    if isinstance(step, _Ended):
        new = [(row, texts[row].finish()) for row in step]
    else:
        new = [(row, "" if texts[row].has_ended else texts[row].add([token])) for row, token in step]
    yield from (Piece(row, text) for row, text in new if text)
