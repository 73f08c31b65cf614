"""Decodes a row's answer while it grows: cuts it at its end, and releases only text that can no longer change.

Knows nothing of how models run.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ptuning.errors import PromptError
from ptuning.model import Backbone

MAX_NEW_TOKENS = 50  # the default


@dataclass(frozen=True)
class WritingOptions:
    """How answers are generated."""

    options: dict[str, Any]
    """Options for transformers' own `generate`."""
    ends: frozenset[int]
    """The tokens that end an answer."""
    stop_strings: tuple[str, ...]
    """The texts that end an answer and are left out of it."""
    num_beams: int
    """Beams per row."""
    max_new_tokens: int
    """The most tokens in an answer."""
    has_own_cache: bool
    """Whether an option makes transformers manage its own cache, which then cannot start with a kept prefix."""
    is_assisted: bool
    """Whether one step may add several tokens."""


class RowText:
    """A row's answer while it grows; it ends at the first end-of-text token or stop string.

    Args:
        tokenizer: What decodes the ids.
        ends: The tokens that end the answer.
        stop_strings: The texts that end the answer and are left out of it.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int], stop_strings: Sequence[str]) -> None:
        self._decode, self._ends, self._stop_strings = tokenizer.decode, ends, stop_strings
        self._ids: list[int] = []
        self._num_returned = 0
        self.has_ended = False

    def add(self, ids: Sequence[int]) -> str:
        """Adds tokens; returns the text that can no longer change and was not returned before."""
        for token in ids:
            if self.has_ended or token in self._ends:
                self.has_ended = True
                break
            self._ids.append(token)
        return self._new_text(is_last=self.has_ended)

    def finish(self) -> str:
        """Ends the answer; returns the text that was held back."""
        self.has_ended = True
        return self._new_text(is_last=True)

    def _new_text(self, is_last: bool) -> str:
        text = self._decode(self._ids, skip_special_tokens=True)
        places = [place for place in (text.find(stop) for stop in self._stop_strings) if place >= 0]
        if places:
            self.has_ended = is_last = True
            text = text[: min(places)]
        num_certain = len(text) if is_last else len(text) - self._num_uncertain(text)
        new = text[self._num_returned : num_certain]
        self._num_returned = max(self._num_returned, num_certain)
        return new

    def _num_uncertain(self, text: str) -> int:
        """Characters at the end that may still change: an incomplete character, or the start of a stop string."""
        whole = text.rstrip("\ufffd")
        starts = (stop[:n] for stop in self._stop_strings for n in range(1, len(stop)))
        return len(text) - len(whole) + max((len(each) for each in starts if whole.endswith(each)), default=0)


def texts_of(backbone: Backbone, ids_BN: Tensor, settings: WritingOptions) -> list[str]:
    """Decodes each row's answer."""
    texts = []
    for ids in ids_BN.tolist():
        row = RowText(backbone.tokenizer, settings.ends, settings.stop_strings)
        texts.append(row.add(ids) + row.finish())
    return texts


def require_limits(max_new_tokens: int, stop_strings: Sequence[str]) -> None:
    """Raises `PromptError` where an answer may have no token, or ends at something that is not text."""
    if isinstance(stop_strings, str) or not all(isinstance(each, str) and each for each in stop_strings or ()):
        raise PromptError(f"stop_strings={stop_strings!r}", "a list of texts, none of them empty", "Correct it")
    if max_new_tokens < 1:
        raise PromptError(f"max_new_tokens={max_new_tokens}", "an integer above 0", "Use 1 or more")
