"""Where a prompt lies in the embedding space: norms, neighbourhoods, how alike its tokens are, its effective rank.

Knows nothing of what tokens mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptuning.evaluation import Cloud, Table
from ptuning.inspection.measures.protocol import Measured, Subject
from ptuning.inspection.vocabulary.embeddings import Vocabulary, unit

NAME = "geometry"
_NEIGHBOURS = 10
_SAMPLE = 500  # tokens whose own neighbourhoods are measured
_DRAWN = 800  # tokens in the cloud
COLUMNS = {
    "position": "the virtual token's place in the prompt, from 0",
    "norm": "its L2 norm",
    "norm_percentile": "percentage of the vocabulary with a smaller norm",
    "distance": "mean Euclidean distance to its ten nearest tokens, without the one that it began at",
    "distance_percentile": "percentage of 500 random tokens that are nearer to their own ten nearest tokens",
    "init_norm_percentile": "norm_percentile of the token that it began at; None where that is not known",
    "init_distance_percentile": "distance_percentile of that token",
    "moved": "Euclidean distance from where it began; None where that is not known",
}


@dataclass(frozen=True, kw_only=True)
class Geometry(Measured):
    """A prompt in the embedding space; `COLUMNS` says what the table holds, with a record for each virtual token."""

    cosines_PP: Tensor
    """Cosines of the virtual tokens with each other."""
    effective_rank: float
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007): from 1 to P."""
    vocabulary_norms: dict[str, float]
    """The norms in the vocabulary at 5, 50 and 95 %."""

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return {
            "table": self.table.as_dict(),
            "cosines": self.cosines_PP.tolist(),
            "effective_rank": self.effective_rank,
            "vocabulary_norms": self.vocabulary_norms,
        }


def measure(subject: Subject, earlier: Mapping[str, Measured]) -> Geometry:
    """Measures the shown prompt."""
    return geometry(subject.shown_PH, subject.vocabulary, subject.init_ids)


@torch.no_grad()
def geometry(prompt_PH: Tensor, vocabulary: Vocabulary, init_ids: Sequence[int | None] | None = None) -> Geometry:
    """Measures where a prompt lies.

    Args:
        prompt_PH: The prompt, `[P, H]`.
        vocabulary: The base model's vocabulary.
        init_ids: The token that each virtual token began at; None where it began at none.
    """
    own_PH = prompt_PH.float().to(vocabulary.device)
    quantiles = {str(share): float(vocabulary.norms_V.quantile(share / 100)) for share in (5, 50, 95)}
    rank = effective_rank(own_PH)
    chart, share = cloud(prompt_PH, vocabulary, init_ids)
    how = (
        f"Small dots are random tokens, in the plane of their first two principal components, which holds {share:.0%} "
        "of their variance. Arrows run from where each virtual token began to where it is now. Points that are near in "
        "this plane may be far apart in the whole space. "
        f"The prompt's effective rank is {rank:.1f} of {len(own_PH)}."
    )
    norms = ", ".join(f"{value:.3f} at {share} %" for share, value in quantiles.items())
    return Geometry(
        name=NAME,
        title="Where it lies",
        how=how,
        table=_table(own_PH, vocabulary, list(init_ids or [None] * len(own_PH))),
        chart=chart,
        lines=[f"effective rank {rank:.1f} of {len(own_PH)}; vocabulary norms: {norms}"],
        cosines_PP=unit(own_PH) @ unit(own_PH).T,
        effective_rank=rank,
        vocabulary_norms=quantiles,
    )


def _table(own_PH: Tensor, vocabulary: Vocabulary, ids: Sequence[int | None]) -> Table:
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
        moved = None if i is None else float((own_PH[p] - vocabulary.rows([i])[0]).norm())
        records.append(
            {
                "position": p,
                "norm": float(norms_P[p]),
                "norm_percentile": percentile(norms_P[p], norms_V),
                "distance": float(away_P[p]),
                "distance_percentile": percentile(away_P[p], away_S),
                "init_norm_percentile": None if i is None else percentile(norms_V[i], norms_V),
                "init_distance_percentile": None if i is None else percentile(away[i], away_S),
                "moved": moved,
            }
        )
    return Table(COLUMNS, records)


def cloud(
    prompt_PH: Tensor, vocabulary: Vocabulary, init_ids: Sequence[int | None] | None = None
) -> tuple[Cloud, float]:
    """Random tokens, the prompt and its start in the plane of the tokens' first two principal components.

    Returns:
        The chart, and the share of the tokens' variance that the plane holds.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(len(vocabulary), generator=generator)[:_DRAWN].tolist()
    tokens_NH = vocabulary.rows(drawn) - vocabulary.mean_H
    weights_N2 = torch.linalg.eigh(tokens_NH @ tokens_NH.T).eigenvectors[:, -2:].flip(1)  # N is small, H may not be
    plane_H2 = unit(weights_N2.T @ tokens_NH).T

    def place(rows_NH: Tensor) -> list[list[float]]:
        return ((rows_NH - vocabulary.mean_H) @ plane_H2).tolist()

    own_PH = prompt_PH.float().to(vocabulary.device)
    starts = [None if i is None else place(vocabulary.rows([i]))[0] for i in init_ids or [None] * len(own_PH)]
    tokens_N2 = tokens_NH @ plane_H2
    share = float(tokens_N2.square().sum() / tokens_NH.square().sum())
    return Cloud("vocabulary and prompt", tokens_N2.tolist(), place(own_PH), starts), share


def effective_rank(prompt_PH: Tensor) -> float:
    """Exp of the entropy of the normalised singular values (Roy and Vetterli 2007)."""
    values = torch.linalg.svdvals(prompt_PH.float().cpu())
    shares = (values / values.sum()).clamp(min=1e-12)
    return float((-(shares * shares.log()).sum()).exp())


def _distances(vectors_NH: Tensor, own_ids: Sequence[int | None], vocabulary: Vocabulary) -> Tensor:
    """Mean distance of each vector to its ten nearest different tokens, without its own token: `[N]`."""
    num = min(_NEIGHBOURS, len(vocabulary.different_U) - 1)
    left_out_N1 = torch.tensor([-1 if i is None else int(vocabulary.same_V[i]) for i in own_ids])[:, None]
    nearest = list[Tensor]()
    for ids_C, rows_CH, _ in vocabulary.chunks():
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab: rounding matters only where both are equal, and equal rows are left out
        squared_NC = vectors_NH.square().sum(1)[:, None] + rows_CH.square().sum(1) - 2 * vectors_NH @ rows_CH.T
        squared_NC.masked_fill_(ids_C == left_out_N1.to(ids_C.device), torch.inf)
        nearest.append(squared_NC.topk(min(num, len(ids_C)), dim=1, largest=False).values)
    squared_NK = torch.cat(nearest, dim=1).topk(num, dim=1, largest=False).values
    return squared_NK.clamp(min=0).sqrt().mean(dim=1)


def percentile(value: Tensor | float, among: Tensor) -> float:
    """The percentage of numbers that are smaller than a value, 0 to 100."""
    return float((among < value).float().mean()) * 100
