"""Scores of the same rows under several prompts, and bootstrap intervals for what follows from them.

Knows nothing of models.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor

from ptuning.evaluation.metrics import RowScores

_REPLICATES = 1000
_PART = 2**22  # draws that are made or multiplied at a time: memory beside the counts stays small
_LEAST_DIVERGENCE = 1e-5  # nats; smaller ones may be rounding
_LOW, _HIGH = 0.025, 0.975
Measure = Literal["accuracy", "loss"]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; value None where it is undefined."""

    value: float | None
    """The number."""
    low: float | None
    """Lower end."""
    high: float | None
    """Upper end."""

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low is not None and self.low > 0

    def __str__(self) -> str:
        """One phrase for people."""
        if self.value is None:
            return "undefined"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    @property
    def percent(self) -> str:
        """A share for people."""
        if self.value is None:
            return "an undefined share"
        return f"{self.value:.0%} ({self.low:.0%} to {self.high:.0%})"

    def as_dict(self) -> dict[str, float | None]:
        """The same as plain data."""
        return dataclasses.asdict(self)


def least(estimates: Iterable[Estimate]) -> Estimate:
    """The estimate with the lowest lower end; an undefined one counts as the lowest."""
    return min(estimates, key=lambda each: -math.inf if each.low is None else each.low)


@dataclass(frozen=True)
class Scores:
    """Scores of N rows with K prompts of one kind."""

    correct_NK: Tensor
    """1 where the answer is right."""
    loss_NK: Tensor
    """Cross-entropy of the row's answer, in nats."""
    is_measured_NK: Tensor
    """1 where the row was read with the prompt."""
    labels_NKC: Tensor | None
    """Log-probabilities of the labels, normalised over the labels; None where answers are generated."""

    @classmethod
    def one(cls, scores: RowScores) -> Self:
        """Scores of all rows with one prompt."""
        return cls.several([(range(len(scores.log_probs_N)), scores)], len(scores.log_probs_N))

    @classmethod
    def several(cls, parts: Sequence[tuple[Sequence[int], RowScores]], num_rows: int) -> Self:
        """Scores with several prompts, each of which read some of the rows."""
        shape = (num_rows, len(parts))
        correct_NK, loss_NK, is_measured_NK = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
        labels = [scores.labels_NC for _, scores in parts if scores.labels_NC is not None]
        labels_NKC = torch.zeros(*shape, labels[0].shape[1]) if labels else None
        for k, (rows, scores) in enumerate(parts):
            places = torch.tensor(list(rows))
            correct_NK[places, k] = scores.is_correct_N.float()
            loss_NK[places, k] = -scores.log_probs_N.float()
            is_measured_NK[places, k] = 1.0
            if labels_NKC is not None:
                labels_NKC[places, k] = labels[k].float().log_softmax(dim=1)
        return cls(correct_NK, loss_NK, is_measured_NK, labels_NKC)

    def of(self, measure: Measure) -> Tensor:
        """The scores in one measure, `[N, K]`."""
        return self.correct_NK if measure == "accuracy" else self.loss_NK


class Resampled:
    """Scores of several kinds of prompts on the same rows, resampled together.

    Each replicate draws rows, the same for all kinds, and prompts of each kind. How often a row is drawn is kept as an
    8-bit integer: 100,000 rows take 100 MB.

    Args:
        scores: Kind -> its scores.
        seed: Seed of the draws.
    """

    def __init__(self, scores: Mapping[str, Scores], seed: int = 0) -> None:
        self._scores, generator = dict(scores), torch.Generator().manual_seed(seed)
        num_rows = len(next(iter(scores.values())).loss_NK)
        self._rows_RN = _counts(num_rows, generator)
        self._prompts_RK = {name: _counts(each.loss_NK.shape[1], generator) for name, each in scores.items()}

    @property
    def names(self) -> list[str]:
        """The kinds of prompts."""
        return list(self._scores)

    @cached_property
    def has_labels(self) -> bool:
        """Whether all rows were scored over the same labels."""
        return all(each.labels_NKC is not None for each in self._scores.values())

    def scores_of(self, name: str) -> Scores:
        """The scores of a kind, row by row."""
        return self._scores[name]

    def num_prompts(self, name: str) -> int:
        """How many prompts of a kind there are."""
        return self._scores[name].loss_NK.shape[1]

    def num_rows(self, name: str) -> int:
        """How many rows were read with a kind, summed over its prompts."""
        return int(self._scores[name].is_measured_NK.sum())

    def mean(self, name: str, measure: Measure) -> Estimate:
        """The mean accuracy or loss of a kind."""
        return self._estimate(lambda means: means(name, measure))

    def gain(self, name: str, over: str, measure: Measure) -> Estimate:
        """How much better a kind is than another: higher accuracy, or lower loss."""
        sign = 1.0 if measure == "accuracy" else -1.0
        return self._estimate(lambda means: sign * (means(name, measure) - means(over, measure)))

    def kept(self, name: str, whole: str, base: str, measure: Measure, own_base: str | None = None) -> Estimate:
        """The share of the gain of `whole` over `base` that a kind keeps; undefined where that gain may be zero.

        The gain of the kind itself is measured over `own_base`, by default `base`.
        """
        if not self.gain(whole, base, measure).is_above_zero:
            return Estimate(None, None, None)
        low = own_base or base

        def share(means: Callable[[str, Measure], Tensor]) -> Tensor:
            gained_R = means(whole, measure) - means(base, measure)
            is_gain_R = gained_R.sign() == gained_R[0].sign()  # a replicate that gains nothing has no share of it
            return torch.where(is_gain_R, (means(name, measure) - means(low, measure)) / gained_R, torch.nan)

        return self._estimate(share)

    def divergence_kept(self, name: str, whole: str, base: str) -> Estimate:
        """1 - KL(whole, name) / KL(whole, base), each a mean over rows; undefined where the second may be 0.

        The divergences are those of the label distributions.
        """
        of_name, of_base = (self._divergences(each, whole) for each in (name, base))
        low = _interval(self._weighted(of_base, base)).low
        if low is None or low < _LEAST_DIVERGENCE:
            return Estimate(None, None, None)
        return _interval(1 - self._weighted(of_name, name) / self._weighted(of_base, base))

    def _divergences(self, name: str, whole: str) -> Tensor:
        """KL divergence of each row's label distribution under a kind from that under `whole`, `[N, K]`."""
        expected_NKC, found_NKC = self._scores[whole].labels_NKC, self._scores[name].labels_NKC
        assert expected_NKC is not None
        assert found_NKC is not None
        return (expected_NKC.exp() * (expected_NKC - found_NKC)).sum(dim=2)

    def _weighted(self, values_NK: Tensor, name: str) -> Tensor:
        """Means over rows and prompts: of the data itself, then of each replicate, `[1 + R]`."""
        measured_NK, prompts_RK = self._scores[name].is_measured_NK, self._prompts_RK[name]
        total_R = (self._row_sums(values_NK * measured_NK) * prompts_RK).sum(dim=1)
        return total_R / (self._row_sums(measured_NK) * prompts_RK).sum(dim=1)

    def _row_sums(self, values_NK: Tensor) -> Tensor:
        """Sums over the rows as often as they are drawn, `[1 + R, K]`."""
        num = _num_replicates(len(values_NK))
        part_RN, sums_RK = torch.empty(num, len(values_NK)), torch.empty(len(self._rows_RN), values_NK.shape[1])
        for counts_RN, own_RK in zip(self._rows_RN.split(num), sums_RK.split(num), strict=True):
            torch.mm(part_RN[: len(counts_RN)].copy_(counts_RN), values_NK, out=own_RK)
        return sums_RK

    def _estimate(self, make: Callable[[Callable[[str, Measure], Tensor]], Tensor]) -> Estimate:
        return _interval(make(lambda name, measure: self._weighted(self._scores[name].of(measure), name)))


def _counts(num: int, generator: torch.Generator) -> Tensor:
    """How often each of `num` things is drawn, `[1 + R, num]`: once each in the first row, then in every replicate.

    8 bits are enough: a thing is drawn once a replicate on average, and 256 times with a chance below 1e-500.
    """
    counts_RN = torch.ones(1 + _REPLICATES, num, dtype=torch.uint8)
    for part_RN in counts_RN[1:].split(_num_replicates(num)):
        drawn_RN = torch.randint(num, part_RN.shape, generator=generator)
        part_RN.zero_().scatter_add_(1, drawn_RN, torch.ones_like(part_RN))
    return counts_RN


def _num_replicates(num: int) -> int:
    """How many replicates of `num` draws each are handled at a time."""
    return max(1, _PART // num)


def _interval(values_R: Tensor) -> Estimate:
    """The first value, with the 95 % interval that the others span."""
    drawn_R = values_R[1:][values_R[1:].isfinite()]
    low, high = (float(drawn_R.quantile(q)) for q in (_LOW, _HIGH))
    return Estimate(float(values_R[0]), low, high)
