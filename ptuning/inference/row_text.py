"""A row's answer as it grows, in words: up to its end, and what of it is certain.

Knows nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ptuning.model import Backbone


@dataclass(frozen=True)
class WritingOptions:
    """How answers are written."""

    options: dict[str, Any]
    """For transformers' own `generate`."""
    ends: frozenset[int]
    """The tokens that end an answer."""
    stop_strings: tuple[str, ...]
    """The texts that end an answer, left out of it."""
    num_beams: int
    """Beams a row."""
    max_new_tokens: int
    """The most tokens an answer may have."""
    has_own_cache: bool
    """Whether an option makes transformers handle its cache itself, which then cannot begin with a kept prefix."""
    is_assisted: bool
    """Whether several tokens may come in a step."""


class RowText:
    """A row's answer as it grows, up to its end: the first end-of-text token or stop string.

    Args:
        backbone: Whose tokenizer reads the ids.
        settings: What ends it.
    """

    def __init__(self, backbone: Backbone, settings: WritingOptions) -> None:
        self._decode, self._settings = backbone.tokenizer.decode, settings
        self._ids: list[int] = []
        self._num_told = 0
        self.has_ended = False

    def add(self, ids: Sequence[int]) -> str:
        """Takes new tokens; returns the text that is certain now and was not before."""
        for token in ids:
            if self.has_ended or token in self._settings.ends:
                self.has_ended = True
                break
            self._ids.append(token)
        return self._new_text(is_last=self.has_ended)

    def finish(self) -> str:
        """Returns the text that was held back, once no more tokens come."""
        self.has_ended = True
        return self._new_text(is_last=True)

    def _new_text(self, is_last: bool) -> str:
        text = self._decode(self._ids, skip_special_tokens=True)
        places = [place for place in (text.find(stop) for stop in self._settings.stop_strings) if place >= 0]
        if places:
            self.has_ended = is_last = True
            text = text[: min(places)]
        num_certain = len(text) if is_last else len(text) - self._num_uncertain(text)
        new, self._num_told = text[self._num_told : num_certain], max(self._num_told, num_certain)
        return new

    def _num_uncertain(self, text: str) -> int:
        """Characters at the end that may still change: half a character, and before it the start of a stop string."""
        whole = text.rstrip("\ufffd")
        beginnings = (stop[:n] for stop in self._settings.stop_strings for n in range(1, len(stop)))
        return len(text) - len(whole) + max((len(each) for each in beginnings if whole.endswith(each)), default=0)


def texts_of(backbone: Backbone, ids_BN: Tensor, settings: WritingOptions) -> list[str]:
    """Each row's answer in words."""
    texts = []
    for ids in ids_BN.tolist():
        row = RowText(backbone, settings)
        texts.append(row.add(ids) + row.finish())
    return texts
