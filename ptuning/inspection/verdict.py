"""One word and one sentence on whether a decoding can be believed, judged by what prompts do, not by geometry alone.

Knows nothing of how the scores were measured.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ptuning.errors import ConfigError
from ptuning.evaluation import Estimate, Measure, Resampled, least
from ptuning.inspection.measures.ladder import EMBEDDED, INIT_TEXT, NONE, RANDOM, SOFT, TEXT, UNTRAINED, decoding_of

FAITHFUL, PARTIAL, ECHO, DECORATIVE = "FAITHFUL", "PARTIAL", "ECHO OF INIT", "DECORATIVE"
NO_EFFECT, NOT_JUDGED = "NO EFFECT", "NOT JUDGED"
_MORE_ROWS = " With more rows that could change."
WORDS = (FAITHFUL, PARTIAL, ECHO, DECORATIVE, NO_EFFECT, NOT_JUDGED)

_OWN_WORDS = (
    "Do not quote them. For a prompt that one can read, score words of your own beside it (--human), or have ptuning "
    "harden look for some."
)
ADVICE = {
    FAITHFUL: "The decoded text does what the prompt does: it may stand in its place as a plain prompt.",
    PARTIAL: "Keep the soft prompt, and take its words as a hint: part of what it does is not in them.",
    ECHO: f"The prompt works, but its words cannot say why: they are where it began. {_OWN_WORDS}",
    DECORATIVE: f"The prompt works, but its words do not do what it does. {_OWN_WORDS}",
    NO_EFFECT: "Do not use this prompt yet: train it longer, at another learning rate or on more rows, or use the same "
    "words without it, which are not shown to be worse.",
    NOT_JUDGED: "Give rows with answers (--data, or rows in Python): the verdict rests on them.",
}
"""Word -> what to do."""
MEANINGS = {
    FAITHFUL: "The prompt works, and its nearest tokens as plain text do what it does.",
    PARTIAL: "The prompt works, and its nearest tokens do part of what it does.",
    ECHO: "The prompt works, but most of its nearest tokens are those that it began at, and do no more than those did.",
    DECORATIVE: "The prompt works, but its nearest tokens do little of what it does.",
    NO_EFFECT: "The prompt is not shown to do more than random tokens, or than the same words without it.",
    NOT_JUDGED: "There were too few rows to tell.",
}
"""Word -> what it means."""


@dataclass(frozen=True)
class Thresholds:
    """Where one verdict ends and the next begins."""

    faithful: float = 0.8
    """Share of the soft prompt's gain that a faithful decoding keeps as text (lower end of the 95 % interval)."""
    partial: float = 0.2
    """The same share for a decoding that can be believed in part."""
    echo: float = 0.5
    """Share of virtual tokens that still decode to their initial token; from here on a decoding may be an echo."""
    rows: int = 50
    """Fewest rows to judge on: with fewer an interval says little."""

    def __post_init__(self) -> None:
        shares = self.partial, self.faithful, self.echo
        if not (0 <= self.partial <= self.faithful and 0 <= self.echo <= 1):
            raise ConfigError(
                f"thresholds partial, faithful, echo = {shares}",
                "0 <= partial <= faithful, and echo from 0 to 1",
                "Correct them",
            )
        if self.rows < 2:
            raise ConfigError(f"threshold rows = {self.rows}", "2 or more: one row has no interval", "Raise it")


@dataclass(frozen=True)
class Verdict:
    """How far a decoding can be believed."""

    word: str
    """FAITHFUL, PARTIAL, ECHO OF INIT, DECORATIVE, NO EFFECT or NOT JUDGED."""
    sentence: str
    """The word in a sentence, with its numbers."""
    effect: str | None
    """What the prompt does, in a sentence: its score beside that of the same words without it."""
    measure: Measure | None
    """The measure of all gains: accuracy or loss."""
    gain: Estimate | None
    """The soft prompt's gain over random tokens."""
    over_words: Estimate | None
    """Its gain over the same words without it; None where these are no text."""
    learned: Estimate | None
    """Its gain over the untrained prompt; None where that is not known."""
    fidelity: Estimate | None
    """The share of the gain that the decoding keeps; value None where it is undefined."""
    gap: Estimate | None
    """Discretisation gap: the loss of replacing each virtual token by its nearest token's embedding."""
    share_init: float
    """Share of virtual tokens that still decode to their initial token."""
    thresholds: Mapping[str, float]
    """Where one verdict ends and the next begins."""

    @property
    def advice(self) -> str:
        """What the word means for whoever uses the prompt, and what to do."""
        return ADVICE[self.word]

    def as_dict(self) -> dict[str, Any]:
        """The verdict as plain data."""
        return {**dataclasses.asdict(self), "advice": self.advice}


def judge(
    scores: Resampled | None, share_init: float, thresholds: Thresholds | None = None, measure: Measure | None = None
) -> Verdict:
    """Gives the verdict.

    Args:
        scores: The ladder's scores; None without rows: nothing is judged.
        share_init: Share of virtual tokens that decode to the token that they were initialised from.
        thresholds: Where one verdict ends and the next begins.
        measure: accuracy or loss; None: accuracy where answers are labels, otherwise loss.
    """
    limits = thresholds or Thresholds()
    known = dataclasses.asdict(limits)
    if measure is None and scores is not None:
        measure = "accuracy" if scores.has_labels else "loss"
    effect = None if scores is None or measure is None else _effect(scores, measure)
    if scores is None or measure is None or scores.num_rows(SOFT) < limits.rows:
        count = "No" if scores is None else f"{scores.num_rows(SOFT)}"
        sentence = f"{count} rows were given, and {limits.rows} are needed to judge; the decoding alone is no evidence."
        return Verdict(NOT_JUDGED, sentence, effect, None, None, None, None, None, None, share_init, known)
    decoding, bases = decoding_of(scores)
    gains = {name: scores.gain(SOFT, name, measure) for name in (RANDOM, NONE, UNTRAINED) if name in scores.names}
    fidelity = least(scores.kept(decoding, SOFT, RANDOM, measure, base) for base in bases)
    gap = scores.gain(SOFT, EMBEDDED, measure)
    word = _word(scores, measure, gains, fidelity, share_init, limits)
    sentence = _sentence(word, decoding, measure, gains, fidelity, share_init, limits)
    gained = gains[RANDOM], gains.get(NONE), gains.get(UNTRAINED)
    return Verdict(word, sentence, effect, measure, *gained, fidelity, gap, share_init, known)


def _effect(scores: Resampled, measure: Measure) -> str:
    own, number = scores.mean(SOFT, measure).value, scores.num_rows(SOFT)
    told = f"With the prompt: {measure} {own:.3f} on {number:,} rows"
    if NONE not in scores.names:
        return f"{told}."
    return f"{told}; with the same words without it: {scores.mean(NONE, measure).value:.3f}."


def word_of_text(scores: Resampled, text: str, thresholds: Thresholds | None = None) -> tuple[str, Estimate]:
    """The verdict on a text in the prompt's place, and the share of the prompt's gain that it keeps.

    Args:
        scores: The ladder's scores.
        text: The text's rung.
        thresholds: Where one verdict ends and the next begins.
    """
    limits, (_, bases) = thresholds or Thresholds(), decoding_of(scores)
    measure: Measure = "accuracy" if scores.has_labels else "loss"
    kept = least(scores.kept(text, SOFT, base, measure) for base in bases)
    if scores.num_rows(SOFT) < limits.rows:
        return NOT_JUDGED, kept
    known = [name for name in (RANDOM, NONE) if name in scores.names]
    if kept.low is None or not all(scores.gain(SOFT, name, measure).is_above_zero for name in known):
        return NO_EFFECT, kept
    return _word_of_share(kept.low, limits), kept


def _word_of_share(low: float, limits: Thresholds) -> str:
    return FAITHFUL if low >= limits.faithful else PARTIAL if low >= limits.partial else DECORATIVE


def _word(
    scores: Resampled,
    measure: Measure,
    gains: Mapping[str, Estimate],
    fidelity: Estimate,
    share_init: float,
    limits: Thresholds,
) -> str:
    if not all(gains[name].is_above_zero for name in (RANDOM, NONE) if name in gains):
        return NO_EFFECT
    decoding, _ = decoding_of(scores)
    init = INIT_TEXT if decoding == TEXT else UNTRAINED
    if share_init >= limits.echo and init in scores.names and not scores.gain(decoding, init, measure).is_above_zero:
        return ECHO
    low = fidelity.low
    assert low is not None  # the gain is above 0, so its share is defined
    return _word_of_share(low, limits)


def _sentence(
    word: str,
    decoding: str,
    measure: Measure,
    gains: Mapping[str, Estimate],
    fidelity: Estimate,
    share_init: float,
    limits: Thresholds,
) -> str:
    shape = "as plain text" if decoding == TEXT else "as embeddings, row by row,"
    kept = f"{shape} the decoding keeps {fidelity.percent} of the prompt's gain in {measure}"
    if word == NO_EFFECT:
        than = next(name for name in (RANDOM, NONE) if not gains[name].is_above_zero)
        shown = f"These rows do not show the prompt to be better than {than}: its gain in {measure} is {gains[than]}."
        return shown + (_MORE_ROWS if (gains[than].high or 0.0) > 0 else "")
    if word == ECHO:
        learned = gains.get(UNTRAINED)
        since = "" if learned is None else f" What training added, {learned} in {measure}, does not show in them."
        return (
            f"{share_init:.0%} of the virtual tokens decode to their initial tokens, and the decoding is not shown to "
            f"do more than those did.{since}"
        )
    if word == DECORATIVE:
        return f"Do not read this text: {kept}." + (_MORE_ROWS if (fidelity.high or 0.0) >= limits.faithful else "")
    return f"{kept[0].upper()}{kept[1:]}{': the rest is not in it' if word == PARTIAL else ''}."
