"""Chance: vectors of known kinds that were never trained, to compare virtual tokens with.

Knows nothing of what a prompt does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptuning.inspection.vocabulary.embeddings import Vocabulary, unit
from ptuning.inspection.vocabulary.neighbours import closest, top

VOCABULARY = "vocabulary"  # Gaussian, with the vocabulary's mean and covariance
DIRECTION = "direction"  # a random direction with the virtual token's norm and its share along the vocabulary's mean
STEP = "step"  # the initial token, and a random step as long as the virtual token's own
UNTRAINED = "untrained"  # other tokens: a virtual token that began at a token was one itself
_ROUNDING = 1e-6  # error of a cosine
_DRAWS = 64  # draws handled at a time: few enough to stay in the processor's cache


class Nulls:
    """Random vectors of each kind; `p_values` says how near each comes to a token.

    All virtual tokens share the random directions, so these are multiplied with the vocabulary only once: the cosine of
    a sum with a token is the sum of both parts' products with the token, over the length of the sum.

    Args:
        vocabulary: The vocabulary.
        prompt_PH: The prompt, `[P, H]`.
        init_ids: The token that each virtual token began at; None where it began at none.
        num: N, the number of vectors of each kind; where they depend on the virtual token, N for each.
        seed: Seed of the draws.
    """

    def __init__(
        self, vocabulary: Vocabulary, prompt_PH: Tensor, init_ids: Sequence[int | None], num: int, seed: int
    ) -> None:
        self._vocabulary, self._init_ids, self.num = vocabulary, list(init_ids), num
        generator = torch.Generator().manual_seed(seed)
        self.prompt_PH = prompt_PH.float().to(vocabulary.device)
        self.like_vocabulary_NH = vocabulary.random_like(num, generator)
        self._direction_NH = unit(torch.randn(num, vocabulary.width, generator=generator)).to(vocabulary.device)
        chosen = torch.randint(len(vocabulary.plain_ids), (num,), generator=generator)
        has_begun = any(i is not None for i in init_ids)
        self._tokens = torch.tensor(vocabulary.plain_ids)[chosen].tolist() if has_begun else []

    def directions(self, p: int, chosen: Iterable[int] | None = None) -> Tensor:
        """The vectors of kind `DIRECTION` for a virtual token, `[N, H]`; all, or chosen ones modulo N."""
        rows = slice(None) if chosen is None else [n % self.num for n in chosen]
        return self._direction(p).vectors(self._direction_NH)[rows]

    def steps(self, p: int) -> Tensor | None:
        """The vectors of kind `STEP` for a virtual token, `[N, H]`; None where it began at no token."""
        made = self._step(p)
        return None if made is None else made.vectors(self._direction_NH)

    def _direction(self, p: int) -> "_Sum":
        mean_H, own_H = unit(self._vocabulary.mean_H[None])[0], self.prompt_PH[p]
        along, along_N = own_H @ mean_H, self._direction_NH @ mean_H
        across = (own_H - along * mean_H).norm()  # exact where it is small, as the difference of squares is not
        weight_N = across / (1 - along_N.square()).clamp(min=1e-12).sqrt()
        return _Sum(mean_H, along - weight_N * along_N, weight_N, None)

    def _step(self, p: int) -> "_Sum | None":
        i = self._init_ids[p]
        if i is None:
            return None
        start_H = self._vocabulary.rows([i])[0]
        length_N = (self.prompt_PH[p] - start_H).norm().expand(self.num)
        return _Sum(start_H, torch.ones_like(length_N), length_N, int(self._vocabulary.same_V[i]))

    def p_values(self) -> list[dict[str, float]]:
        """For each virtual token and kind, how often chance comes as near to some token as it does: p-values.

        A vector comes as near as its highest cosine with any token except the one that it began at. p is
        (1 + the number of N that come as near) / (1 + N).
        """
        groups: list[tuple[Tensor, Sequence[int | None]]] = [
            (self.prompt_PH, self._init_ids),
            (self.like_vocabulary_NH, [None] * self.num),
            (self._vocabulary.rows(self._tokens), self._tokens),
        ]
        vectors_MH = torch.cat([vectors for vectors, _ in groups])
        closest_M = closest(vectors_MH, [i for _, ids in groups for i in ids], self._vocabulary)
        own_P, like_N, tokens_N = closest_M.split([len(vectors) for vectors, _ in groups])
        each_token = [(self._direction(p), self._step(p)) for p in range(len(self.prompt_PH))]
        sums = [made for both in each_token for made in both if made is not None]
        by_sum, found = iter(_closest_sums(sums, self._direction_NH, self._vocabulary)), []
        for p, own in enumerate(own_P.tolist()):
            draws = {VOCABULARY: like_N, DIRECTION: next(by_sum)}
            if self._init_ids[p] is not None:
                draws |= {STEP: next(by_sum), UNTRAINED: tokens_N}
            found.append({name: p_value(own, each_N) for name, each_N in draws.items()})
        return found

    def hub_counts(self) -> dict[int, int]:
        """For each token how many vectors of kind `VOCABULARY` are nearest to it, by cosine."""
        _, ids_NK = top(self.like_vocabulary_NH, self._vocabulary, 1)
        ids, counts = ids_NK[:, 0].unique(return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True)
class _Sum:
    """N vectors: a fixed one times `fixed_N`, and N random directions times `drawn_N`."""

    fixed_H: Tensor
    fixed_N: Tensor
    drawn_N: Tensor
    excluded: int | None
    """A token that is left out."""

    def vectors(self, direction_NH: Tensor) -> Tensor:
        """The vectors themselves, `[N, H]`."""
        return self.fixed_N[:, None] * self.fixed_H + self.drawn_N[:, None] * direction_NH


def _closest_sums(sums: Sequence[_Sum], direction_NH: Tensor, vocabulary: Vocabulary) -> list[Tensor]:
    """The highest cosine of each vector with a token, `[N]` for each sum, in one pass over the vocabulary."""
    fixed_KH = torch.stack([each.fixed_H for each in sums])
    best = [torch.full_like(each.drawn_N, -torch.inf) for each in sums]
    for ids_C, _, unit_CH in vocabulary.chunks():
        drawn_NC, fixed_KC = direction_NH @ unit_CH.T, fixed_KH @ unit_CH.T
        for k, each in enumerate(sums):
            if each.excluded is not None:
                fixed_KC[k].masked_fill_(ids_C == each.excluded, -torch.inf)
            best[k] = torch.maximum(best[k], _highest(each, fixed_KC[k], drawn_NC))
    norms = (each.vectors(direction_NH).norm(dim=1) for each in sums)
    return [(best_N / norm_N).cpu() for best_N, norm_N in zip(best, norms, strict=True)]


def _highest(each: _Sum, fixed_C: Tensor, drawn_NC: Tensor) -> Tensor:
    """The highest product of each vector with a token of the chunk, `[N]`."""
    parts = []
    for first in range(0, len(drawn_NC), _DRAWS):
        own = slice(first, first + _DRAWS)
        drawn_DC = drawn_NC[own] * each.drawn_N[own, None]
        parts.append(torch.addcmul(drawn_DC, each.fixed_N[own, None], fixed_C).amax(dim=1))
    return torch.cat(parts)


def p_value(own: float, draws_N: Tensor) -> float:
    """How often chance does as well: (1 + the draws that are at least as high, up to rounding) / (1 + all draws)."""
    return (1 + int((draws_N >= own - _ROUNDING).sum())) / (1 + len(draws_N))


def q_values(ps: Sequence[float]) -> list[float]:
    """False discovery rates (Benjamini and Hochberg 1995): the expected share of chance among p as small as this."""
    order = sorted(range(len(ps)), key=lambda i: ps[i], reverse=True)
    found, least = [1.0] * len(ps), 1.0
    for place, i in enumerate(order):
        least = min(least, ps[i] * len(ps) / (len(ps) - place))
        found[i] = least
    return found
