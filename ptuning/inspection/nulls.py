"""What chance alone makes of a virtual token: vectors of known kinds that were never trained, to compare it with.

Knows nothing of what a prompt does.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from ptuning.inspection.vocabulary import Vocabulary, unit

VOCABULARY = "vocabulary"  # Gaussian, with the vocabulary's mean and covariance
DIRECTION = "direction"  # of the virtual token's norm and share along the vocabulary's mean, else any direction
STEP = "step"  # where it began, and a random step as long as the one it made
UNTRAINED = "untrained"  # other tokens, as it was itself when it began at one
_BLOCK = 2048  # vectors compared at a time
NAMES = (VOCABULARY, DIRECTION, STEP, UNTRAINED)


class Nulls:
    """Random vectors of each kind; `closest` says how near each comes to a token by chance.

    Args:
        vocabulary: The vocabulary.
        prompt_PH: The prompt.
        init_ids: The token that each virtual token began at; None where it was none.
        num: Vectors of each kind, for each virtual token where they depend on it.
        seed: Of the draws.
    """

    def __init__(
        self, vocabulary: Vocabulary, prompt_PH: Tensor, init_ids: Sequence[int | None], num: int, seed: int
    ) -> None:
        self._vocabulary, self._init_ids, self.num = vocabulary, list(init_ids), num
        generator = torch.Generator().manual_seed(seed)
        self.prompt_PH = prompt_PH.float().to(vocabulary.device)
        self.like_vocabulary_NH = vocabulary.random_like(num, generator)
        self.direction_PNH = self._directions(generator)
        self.began = [p for p, i in enumerate(init_ids) if i is not None]
        self._steps(generator)
        self.tokens = torch.tensor(vocabulary.plain_ids)[
            torch.randint(len(vocabulary.plain_ids), (num if self.began else 0,), generator=generator)
        ].tolist()

    def _random(self, num_positions: int, generator: torch.Generator) -> Tensor:
        """Random directions `[positions, N, H]`."""
        drawn = torch.randn(num_positions * self.num, self._vocabulary.width, generator=generator)
        return rearrange(unit(drawn).to(self.prompt_PH), "(p n) h -> p n h", n=self.num)

    def _directions(self, generator: torch.Generator) -> Tensor:
        mean_H = unit(self._vocabulary.mean_H[None])[0]
        along_P = self.prompt_PH @ mean_H
        across_P = (self.prompt_PH.square().sum(dim=1) - along_P.square()).clamp(min=0).sqrt()
        drawn_PNH = self._random(len(self.prompt_PH), generator)
        drawn_PNH = drawn_PNH - (drawn_PNH @ mean_H)[..., None] * mean_H
        drawn_PNH = torch.nn.functional.normalize(drawn_PNH, dim=2)
        return along_P[:, None, None] * mean_H + across_P[:, None, None] * drawn_PNH

    def _steps(self, generator: torch.Generator) -> None:
        start_KH = self._vocabulary.rows([self._init_ids[p] or 0 for p in self.began])
        lengths_K = (self.prompt_PH[self.began] - start_KH).norm(dim=1)
        drawn_KNH = self._random(len(self.began), generator)
        self.step_KNH = start_KH[:, None] + lengths_K[:, None, None] * drawn_KNH

    def chances(self) -> list[dict[str, float]]:
        """For each virtual token and kind, how often chance comes as near to some token as it does: p-values.

        How near a vector comes is its highest cosine with a token other than the one that it began at. p is
        (1 + those of `num` that come as near) / (1 + num).
        """
        own_P = self._closest(self.prompt_PH, self._init_ids)
        like_N = self._closest(self.like_vocabulary_NH, [None] * self.num)
        direction_PN = self._closest_of(self.direction_PNH, [None] * len(own_P))
        began = [self._init_ids[p] for p in self.began]
        step_KN = self._closest_of(self.step_KNH, began)
        tokens_N = self._closest(self._vocabulary.rows(self.tokens), self.tokens)
        found = []
        for p, own in enumerate(own_P):
            draws = {VOCABULARY: like_N, DIRECTION: direction_PN[p]}
            if p in self.began:
                draws |= {STEP: step_KN[self.began.index(p)], UNTRAINED: tokens_N}
            found.append({name: p_value(float(own), each_N) for name, each_N in draws.items()})
        return found

    def hub_counts(self) -> dict[int, int]:
        """How many of the vectors like the vocabulary are nearest to each token, by cosine."""
        _, ids_NK = top(self.like_vocabulary_NH, self._vocabulary, 1)
        ids, counts = ids_NK[:, 0].unique(return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def _closest_of(self, vectors_PNH: Tensor, excluded: Sequence[int | None]) -> Tensor:
        """`[P, N]`, of vectors `[P, N, H]`."""
        vectors_MH = rearrange(vectors_PNH, "p n h -> (p n) h")
        closest_M = self._closest(vectors_MH, [i for i in excluded for _ in range(self.num)])
        return rearrange(closest_M, "(p n) -> p n", n=self.num)

    def _closest(self, vectors_NH: Tensor, excluded: Sequence[int | None]) -> Tensor:
        """The highest cosine of each vector with a token that is not excluded, `[N]`."""
        if not len(vectors_NH):
            return torch.zeros(0)
        values_NK, ids_NK = top(vectors_NH, self._vocabulary, 2)
        same_V = self._vocabulary.same_V
        left_out_N = torch.tensor([-1 if i is None else int(same_V[i]) for i in excluded], device=ids_NK.device)
        return torch.where(ids_NK[:, 0] == left_out_N, values_NK[:, 1], values_NK[:, 0]).cpu()


def p_value(own: float, draws_N: Tensor) -> float:
    """How often chance does as well: (1 + draws at least as high) / (1 + draws)."""
    return (1 + int((draws_N >= own).sum())) / (1 + len(draws_N))


def q_values(ps: Sequence[float]) -> list[float]:
    """False discovery rates (Benjamini and Hochberg 1995): the share of chance among all that are as small."""
    order = sorted(range(len(ps)), key=lambda i: ps[i], reverse=True)
    found, least = [1.0] * len(ps), 1.0
    for place, i in enumerate(order):
        least = min(least, ps[i] * len(ps) / (len(ps) - place))
        found[i] = least
    return found


def top(vectors_NH: Tensor, vocabulary: Vocabulary, k: int, is_centred: bool = False) -> tuple[Tensor, Tensor]:
    """The k highest cosines of each vector with different tokens, less their mean if so, `[N, k]`; and the ids."""
    blocks, best = unit(vectors_NH.float()).split(_BLOCK), list[tuple[Tensor, Tensor]]()
    for ids_C, rows_CH in vocabulary.chunks():
        unit_CH = unit(rows_CH - vocabulary.mean_H if is_centred else rows_CH)
        found = [(block_NH @ unit_CH.T).topk(min(k, len(ids_C)), dim=1) for block_NH in blocks]
        values_NK, places_NK = (torch.cat(each) for each in zip(*found, strict=True))
        best.append((values_NK, ids_C[places_NK]))
    values_NM, ids_NM = (torch.cat(each, dim=1) for each in zip(*best, strict=True))
    values_NK, places_NK = values_NM.topk(k, dim=1)
    return values_NK, ids_NM.gather(1, places_NK)
