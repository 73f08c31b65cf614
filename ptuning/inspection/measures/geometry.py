"""Where a prompt lies beside the vocabulary: norms, neighbourhoods, how alike its tokens are, its effective rank.

Knows nothing of tokens' meaning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptuning.evaluation import Table
from ptuning.inspection.vocabulary.embeddings import Vocabulary, unit

_NEIGHBOURS = 10
_SAMPLE = 500  # vocabulary rows whose own neighbourhoods are measured
_DRAWN = 800  # tokens of the cloud
COLUMNS = {
    "position": "the virtual token's place in the prompt, from 0",
    "norm": "its L2 norm",
    "norm_percentile": "share of the vocabulary with a smaller norm, 0 to 100",
    "distance": "mean Euclidean distance to its ten nearest tokens, the one that it began at left out",
    "distance_percentile": "share of 500 random tokens that are nearer to their own ten nearest, 0 to 100",
    "init_norm_percentile": "norm_percentile of the token that it began at; None where that is not known",
    "init_distance_percentile": "distance_percentile of that token",
    "moved": "Euclidean distance from where it began; None where that is not known",
}


@dataclass(frozen=True)
class Geometry:
    """A prompt beside the vocabulary."""

    table: Table
    """A record a virtual token; `COLUMNS` says what they hold."""
    cosines_PP: Tensor
    """Cosines of the virtual tokens with each other."""
    effective_rank: float
    """exp of the entropy of the singular values' shares (Roy and Vetterli 2007): from 1 to P."""
    vocabulary_norms: dict[str, float]
    """The vocabulary's norms at 5, 50 and 95 %."""

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "table": self.table.as_dict(),
            "cosines": self.cosines_PP.tolist(),
            "effective_rank": self.effective_rank,
            "vocabulary_norms": self.vocabulary_norms,
        }


@torch.no_grad()
def geometry(prompt_PH: Tensor, vocabulary: Vocabulary, init_ids: Sequence[int | None] | None = None) -> Geometry:
    """Measures where a prompt lies.

    Args:
        prompt_PH: The prompt, `[P, H]`.
        vocabulary: The base model's.
        init_ids: The token each virtual token began at, None where it was none.
    """
    own_PH = prompt_PH.float().to(vocabulary.device)
    ids = list(init_ids or [None] * len(own_PH))
    known = [i for i in ids if i is not None]
    sample = torch.randperm(len(vocabulary.different_U), generator=torch.Generator().manual_seed(0))[:_SAMPLE]
    sampled = vocabulary.different_U[sample.to(vocabulary.device)].tolist()
    tokens_NH = vocabulary.rows([*known, *sampled])
    away_M = _distances(torch.cat([own_PH, tokens_NH]), [*ids, *known, *sampled], vocabulary)
    away_P, away_K, away_S = away_M.split([len(ids), len(known), len(sampled)])
    away = dict(zip(known, away_K.tolist(), strict=True))
    norms_P, norms_V = own_PH.norm(dim=1), vocabulary.norms_V
    records = []
    for p, i in enumerate(ids):
        began: tuple[float | None, ...] = (None, None, None)
        if i is not None:
            moved = float((own_PH[p] - vocabulary.rows([i])[0]).norm())
            began = (_percentile(norms_V[i], norms_V), _percentile(away[i], away_S), moved)
        own = (float(norms_P[p]), _percentile(norms_P[p], norms_V), float(away_P[p]), _percentile(away_P[p], away_S))
        values = (p, *own, *began)
        records.append(dict(zip(COLUMNS, values, strict=True)))
    quantiles = {str(share): float(norms_V.quantile(share / 100)) for share in (5, 50, 95)}
    return Geometry(Table(COLUMNS, records), unit(own_PH) @ unit(own_PH).T, effective_rank(own_PH), quantiles)


def cloud(prompt_PH: Tensor, vocabulary: Vocabulary, init_ids: Sequence[int | None] | None) -> dict[str, Any]:
    """Where tokens drawn at random, the prompt and its start lie in the plane of those tokens' most variance.

    Returns:
        tokens and prompt: places in the plane; init: likewise, None where a virtual token began at none; share: of the
        tokens' variance that the plane holds.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(len(vocabulary), generator=generator)[:_DRAWN].tolist()
    tokens_NH = vocabulary.rows(drawn) - vocabulary.mean_H
    weights_N2 = torch.linalg.eigh(tokens_NH @ tokens_NH.T).eigenvectors[:, -2:].flip(1)  # N is small, H may not be
    plane_H2 = unit(weights_N2.T @ tokens_NH).T

    def placed(rows_NH: Tensor) -> list[list[float]]:
        return ((rows_NH - vocabulary.mean_H) @ plane_H2).tolist()

    own_PH = prompt_PH.float().to(vocabulary.device)
    starts = [None if i is None else placed(vocabulary.rows([i]))[0] for i in init_ids or [None] * len(own_PH)]
    held = (tokens_NH @ plane_H2).square().sum() / tokens_NH.square().sum()
    return {
        "tokens": (tokens_NH @ plane_H2).tolist(),
        "prompt": placed(own_PH),
        "init": starts,
        "share": float(held),
    }


def effective_rank(prompt_PH: Tensor) -> float:
    """The exponential of the entropy of the singular values' shares (Roy and Vetterli 2007)."""
    values = torch.linalg.svdvals(prompt_PH.float().cpu())
    shares = (values / values.sum()).clamp(min=1e-12)
    return float((-(shares * shares.log()).sum()).exp())


def _distances(vectors_NH: Tensor, own_ids: Sequence[int | None], vocabulary: Vocabulary) -> Tensor:
    """Mean distance of each vector to its ten nearest different tokens, itself left out: `[N]`."""
    num = min(_NEIGHBOURS, len(vocabulary.different_U) - 1)
    left_out_N1 = torch.tensor([-1 if i is None else int(vocabulary.same_V[i]) for i in own_ids])[:, None]
    nearest = list[Tensor]()
    for ids_C, rows_CH, _ in vocabulary.chunks():
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab: its rounding matters only where both are the same, which is left out
        squared_NC = vectors_NH.square().sum(1)[:, None] + rows_CH.square().sum(1) - 2 * vectors_NH @ rows_CH.T
        squared_NC.masked_fill_(ids_C == left_out_N1.to(ids_C.device), torch.inf)
        nearest.append(squared_NC.topk(min(num, len(ids_C)), dim=1, largest=False).values)
    squared_NK = torch.cat(nearest, dim=1).topk(num, dim=1, largest=False).values
    return squared_NK.clamp(min=0).sqrt().mean(dim=1)


def _percentile(value: Tensor | float, among: Tensor) -> float:
    return float((among < value).float().mean()) * 100
