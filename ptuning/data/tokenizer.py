"""What a tokenizer makes of plain text, alone or behind other text, and what it adds by itself.

Knows nothing of templates, rows or models. Every call here asks a fast tokenizer for the same truncation, padding and
special tokens (none), so that none changes its state after the first and threads may share one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts to tokenize another one behind, where nothing is known of what stands there. Tokenizers with patterns keep a
# colon apart from a word or a number, and a letter apart from everything else.
_BEFORE_WORDS = (":", "\n", "1", "a")
_BEFORE_OTHERS = ("a", "1", ":", "\n")


def text_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text by itself, without special tokens."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids


@dataclass(frozen=True)
class Stretch:
    """Text without a slot in it."""

    text: str
    before: str | None
    """The text that it follows, however many slots stand between; "" where that is unknown, None where there is none.
    """


class RunningText:
    """Tokenizes stretches of text as they are tokenized inside a longer text.

    Many tokenizers put a space, or the mark of one, before every text: alone, " positive" has one space too many there,
    and "positive" has one that nobody wrote. So a stretch that follows another text is tokenized behind that text,
    whose own tokens are then cut off. Where the two do not meet between two tokens, it is tokenized behind a short text
    that does not join with it; if none of a few does that, alone. A tokenizer that adds no space gives the same tokens
    behind a text as alone, and then each stretch is tokenized alone.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        probes = ["a", " a"]
        self._adds_space = self._following([Stretch(text, "") for text in probes]) != text_ids(tokenizer, probes)

    def ids(self, stretches: Sequence[Stretch]) -> list[list[int]]:
        """Token ids of each stretch, without special tokens other than those written in it."""
        if self._adds_space:
            return self._following(stretches)
        return text_ids(self._tokenizer, [each.text for each in stretches])

    def _following(self, stretches: Sequence[Stretch]) -> list[list[int]]:
        anchors = [_anchors(each) for each in stretches]
        found: dict[int, list[int]] = {}
        for place in range(max(map(len, anchors), default=0)):
            tried = [i for i, own in enumerate(anchors) if place < len(own) and i not in found]
            found |= self._behind({i: (anchors[i][place], stretches[i].text) for i in tried})
        alone = [i for i in range(len(stretches)) if i not in found]
        found |= zip(alone, text_ids(self._tokenizer, [stretches[i].text for i in alone]), strict=True)
        return [found[i] for i in range(len(stretches))]

    def _behind(self, pairs: dict[int, tuple[str, str]]) -> dict[int, list[int]]:
        """The ids of texts behind their anchors, for those whose anchor keeps its tokens when the text follows."""
        anchors = list(dict.fromkeys(anchor for anchor, _ in pairs.values()))
        all_ids = text_ids(self._tokenizer, [*anchors, *(anchor + text for anchor, text in pairs.values())])
        anchor_ids = dict(zip(anchors, all_ids, strict=False))
        found = {}
        for (i, (anchor, _)), ids in zip(pairs.items(), all_ids[len(anchors) :], strict=True):
            own = anchor_ids[anchor]
            joins = not own or own[-1] == self._tokenizer.unk_token_id  # unknown characters may share one token
            if not joins and ids[: len(own)] == own:
                found[i] = ids[len(own) :]
        return found


def _anchors(stretch: Stretch) -> tuple[str, ...]:
    """The texts to tokenize a stretch behind, the best first; none where it is alone."""
    if stretch.before is None or not stretch.text:
        return ()
    short = _BEFORE_WORDS if stretch.text[0].isalnum() else _BEFORE_OTHERS
    if stretch.before.isspace():  # of which some tokenizers leave nothing where it ends a text
        return (stretch.before, *(text + stretch.before for text in short), *short)
    return (stretch.before, *short) if stretch.before else short


def special_words(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The texts that the tokenizer reads as special tokens, the longest first."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted((word for word in added if len(word) > 1), key=len, reverse=True)


def frame_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """The ids that the tokenizer adds before and after a text, e.g. `[bos]` and `[]`; none for most GPT-2-like ones."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    framed = tokenizer("a").input_ids
    start = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
    return framed[:start], framed[start + len(bare) :]
