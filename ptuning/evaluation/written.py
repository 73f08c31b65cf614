"""Compares answers that were generated with those that were expected: exact match, character F1 and ROUGE-L.

Knows nothing of models.
"""

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

_WORD = re.compile(r"[^\W_]+")  # letters and digits of any script


@dataclass(frozen=True)
class WrittenMetrics:
    """Means over the generated answers of some rows."""

    num_rows: int
    """Rows compared."""
    exact_match: float
    """The share of answers that are exactly the expected ones, except for white space."""
    character_f1: float
    """Mean character F1."""
    rouge_l: float | None
    """Mean ROUGE-L F-measure; None where rouge-score is not installed."""

    @classmethod
    def of(cls, written: Sequence[str], answers: Sequence[str]) -> Self:
        """Compares each written answer with the expected one; one row or more."""
        pairs, num_rows = list(zip(written, answers, strict=True)), len(answers)
        return cls(
            num_rows,
            sum(exact_match(*pair) for pair in pairs) / num_rows,
            sum(character_f1(*pair) for pair in pairs) / num_rows,
            sum(rouge_l(written, answers)) / num_rows if has_rouge() else None,
        )

    def __str__(self) -> str:
        """One line for display."""
        rouge = "not measured (install ptuning[metrics])" if self.rouge_l is None else f"{self.rouge_l:.3f}"
        return (
            f"exact match {self.exact_match:.3f}, character F1 {self.character_f1:.3f}, ROUGE-L {rouge} "
            f"on {self.num_rows:,} generated answers"
        )

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def exact_match(written: str, answer: str) -> bool:
    """Whether two texts are equal once each run of white space is one space and none is at the ends."""
    return _normalised(written) == _normalised(answer)


def character_f1(written: str, answer: str) -> float:
    """The F1 of the characters that two texts share in any order, from 0 to 1.

    Both texts are taken as multisets of characters, with white space normalised as in `exact_match`; the order of the
    characters does not count. With `n` shared characters it is `2 n / (len(written) + len(answer))`, and 1 for two
    empty texts.
    """
    own, expected = Counter(_normalised(written)), Counter(_normalised(answer))
    total = own.total() + expected.total()
    return 2 * (own & expected).total() / total if total else 1.0


def has_rouge() -> bool:
    """Whether rouge-score is installed."""
    return importlib.util.find_spec("rouge_score") is not None


def rouge_l(written: Sequence[str], answers: Sequence[str]) -> list[float]:
    """The ROUGE-L F-measure of each written answer (Lin 2004), computed by rouge-score.

    Words are runs of letters and digits of any script, in lower case and without stemming; rouge-score's own tokenizer
    would drop all but English letters. Scripts without spaces count a run of characters as one word: look at the
    character F1 there. A text without words scores 0.

    Raises:
        ImportError: Where rouge-score is not installed.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return [float(scorer.score(answer, own)["rougeL"].fmeasure) for own, answer in zip(written, answers, strict=True)]


class _Words:
    """The tokenizer that rouge-score calls."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def _normalised(text: str) -> str:
    return " ".join(text.split())
