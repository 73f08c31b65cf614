"""Streams answers: a thread generates, and the caller reads text as soon as it can no longer change.

Knows nothing of prompt names or tasks.
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
from ptuning.forward import Prompt, memory_explained
from ptuning.inference.generation import write
from ptuning.inference.row_text import RowText, WritingOptions
from ptuning.model import Backbone

PromptedRows: TypeAlias = tuple[Prompt, Sequence[int], Sequence[Example]]
"""A batch to generate for: its prompt, the rows' indices, and the rows."""


class Piece(NamedTuple):
    """A piece of a row's answer."""

    row: int
    """The row's index, from 0."""
    text: str
    """The text that follows the row's earlier pieces."""


class _Cancelled(StoppingCriteria):
    """Ends all rows once the caller has stopped reading."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)


class _RowStreamer(BaseStreamer):
    """Sends on each step's tokens, one token per row; skips the input rows, which transformers puts first."""

    def __init__(self, rows: Sequence[int], send: Callable[[list[tuple[int, int]]], None]) -> None:
        self._rows, self._send, self._has_seen_input = rows, send, False

    def put(self, value: Tensor) -> None:
        if self._has_seen_input:
            self._send(list(zip(self._rows, value.tolist(), strict=True)))
        self._has_seen_input = True

    def end(self) -> None:
        """Does nothing: no tokens are held back."""


def stream(backbone: Backbone, batches: Sequence[PromptedRows], settings: WritingOptions) -> Iterator[Piece]:
    """Generates batch after batch in a separate thread, and yields the text as it comes.

    Args:
        backbone: The frozen model.
        batches: The batches to generate for.
        settings: How to generate.

    Raises:
        PromptError: With beams or assisted generation, which do not produce tokens one by one.
    """
    if settings.num_beams > 1 or settings.is_assisted:
        received = "generate(stream=True) with beams or assisted generation"
        raise PromptError(received, "tokens that come one by one", "Leave one of the two out")
    return _streamed(backbone, batches, settings)


def _streamed(backbone: Backbone, batches: Sequence[PromptedRows], settings: WritingOptions) -> Iterator[Piece]:
    steps: queue.Queue[Any] = queue.Queue()  # a step's tokens, ended rows, an error, or None at the end
    cancelled = threading.Event()

    def work() -> None:
        try:
            for prompt, rows, examples in batches:
                listening = {"streamer": _RowStreamer(rows, steps.put), "stopping_criteria": [_Cancelled(cancelled)]}
                with memory_explained(examples, settings.max_new_tokens):
                    write(backbone, prompt, examples, settings, **listening)
                if cancelled.is_set():
                    return
                steps.put(_Ended(rows))
        except Exception as error:  # raised again in the caller's thread
            steps.put(error)
        finally:
            steps.put(None)

    texts = {
        row: RowText(backbone.tokenizer, settings.ends, settings.stop_strings) for _, rows, _ in batches for row in rows
    }
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
    """The rows of a batch that has ended."""


def _pieces(texts: dict[int, RowText], step: Any) -> Iterator[Piece]:
    """The new text of a step, or the text held back for rows that have ended."""
    if isinstance(step, _Ended):
        new = [(row, texts[row].finish()) for row in step]
    else:
        new = [(row, "" if texts[row].has_ended else texts[row].add([token])) for row, token in step]
    yield from (Piece(row, text) for row, text in new if text)
