"""Whether a prompt is better than the same words without it, row by row on the same rows.

Knows nothing of models, training or files.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from ptuning.evaluation.metrics import NORMAL_QUANTILE, RowScores, finite

LEVEL = 0.05
"""A difference that chance alone would make less often than this is called shown."""


@dataclass(frozen=True)
class Comparison:
    """The same rows with and without a prompt, as sums over rows that processes can add up."""

    is_classification: bool
    """Whether rows are compared by whether their label is right; else by the log-probability of their answer."""
    num_rows: float
    """Rows compared."""
    num_right_with: float
    """Rows that are right with the prompt."""
    num_right_without: float
    """Rows that are right without it."""
    num_only_with: float
    """Rows that are right only with the prompt."""
    num_only_without: float
    """Rows that are right only without it."""
    gain_sum: float
    """How much more likely the prompt makes the rows' answers: log-probability with it less that without, in nats."""
    gain_square_sum: float
    """The squares of the same."""

    @classmethod
    def of(cls, with_prompt: RowScores, without: RowScores, is_classification: bool) -> Self:
        """Compares two scorings of the same rows."""
        one, other = with_prompt.is_correct_N.bool(), without.is_correct_N.bool()
        gain_N = with_prompt.log_probs_N.double() - without.log_probs_N.double()
        return cls(
            is_classification=is_classification,
            num_rows=len(one),
            num_right_with=int(one.sum()),
            num_right_without=int(other.sum()),
            num_only_with=int((one & ~other).sum()),
            num_only_without=int((other & ~one).sum()),
            gain_sum=float(gain_N.sum()),
            gain_square_sum=float(gain_N.square().sum()),
        )

    def summed(self, sum_: Callable[[float], float]) -> Self:
        """The comparison of all processes' rows; `sum_` adds up a number over them."""
        return type(self)(
            self.is_classification, *(sum_(getattr(self, field.name)) for field in dataclasses.fields(self)[1:])
        )

    @property
    def gain(self) -> float:
        """What the prompt adds to the accuracy, or to the mean log-probability of an answer in nats; NaN without rows.

        Above 0: better.
        """
        if not self.num_rows:
            return math.nan
        if self.is_classification:
            return (self.num_right_with - self.num_right_without) / self.num_rows
        return self.gain_sum / self.num_rows

    @property
    def p_value(self) -> float:
        """Two-sided p of the exact sign test on the rows that only one side gets right (McNemar 1947)."""
        return sign_test(int(self.num_only_with), int(self.num_only_without))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % normal interval of the mean gain in log-probability, in nats; endless for fewer than two rows."""
        n = self.num_rows
        if n < 2:
            return -math.inf, math.inf
        mean = self.gain_sum / n
        variance = max(self.gain_square_sum / n - mean**2, 0.0) * n / (n - 1)
        half = NORMAL_QUANTILE * math.sqrt(variance / n)
        return mean - half, mean + half

    @property
    def is_better(self) -> bool:
        """Whether the prompt is shown to be better than the words alone."""
        if self.is_classification:
            return self.gain > 0 and self.p_value < LEVEL
        return self.interval[0] > 0

    def __str__(self) -> str:
        """One phrase for people."""
        rows = f"on {int(self.num_rows):,} rows"
        if self.is_classification:
            one, other = (each / self.num_rows for each in (self.num_right_with, self.num_right_without))
            return f"accuracy {one:.3f} against {other:.3f} {rows} (p = {self.p_value:.2g})"
        low, high = self.interval
        change = f"{abs(self.gain):.3f} nats {'lower' if self.gain < 0 else 'higher'}"
        return f"mean log-probability of an answer {change} {rows} (95 % interval {low:+.3f} to {high:+.3f})"

    def as_dict(self) -> dict[str, Any]:
        """The values that are written to files."""
        counts = {
            "num_rows": int(self.num_rows),
            "measure": "accuracy" if self.is_classification else "log-probability of the answer",
            "gain": finite(self.gain),
            "is_better": self.is_better,
        }
        if self.is_classification:
            only = {"num_only_with": int(self.num_only_with), "num_only_without": int(self.num_only_without)}
            return {**counts, **only, "p_value": self.p_value}
        return {**counts, "interval": [finite(each) for each in self.interval] if self.num_rows > 1 else None}


def sign_test(num_up: int, num_down: int) -> float:
    """Two-sided p of the exact sign test: how often chance gives counts that differ as much or more."""
    n, fewer = num_up + num_down, min(num_up, num_down)

    def log_chance(k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)

    return min(1.0, 2 * math.fsum(math.exp(log_chance(k)) for k in range(fewer + 1)))
