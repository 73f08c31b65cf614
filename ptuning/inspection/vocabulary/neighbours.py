"""Nearest tokens, found chunk by chunk, so that memory stays bounded for any vocabulary.

Knows nothing of prompts or of chance.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ptuning.inspection.vocabulary.embeddings import Vocabulary, unit

Metric = Literal["cosine", "centred_cosine", "l2", "csls"]
METRICS: tuple[Metric, ...] = ("cosine", "centred_cosine", "l2", "csls")
_BLOCK = 2048  # vectors compared at a time


def top(vectors_NH: Tensor, vocabulary: Vocabulary, k: int, is_centred: bool = False) -> tuple[Tensor, Tensor]:
    """The k highest cosines of each vector with different tokens, `[N, k]`, and the ids of these tokens.

    With `is_centred` the vocabulary's mean is subtracted from the tokens, and cosines count by their absolute value.
    """
    blocks, parts = unit(vectors_NH.float()).split(_BLOCK), list[tuple[Tensor, Tensor]]()
    for ids_C, rows_CH, unit_CH in vocabulary.chunks():
        centred_CH = unit(rows_CH - vocabulary.mean_H) if is_centred else unit_CH
        cosines = (block_NH @ centred_CH.T for block_NH in blocks)
        found = [_highest_k(each.abs_() if is_centred else each, min(k, len(ids_C))) for each in cosines]
        values_NK, places_NK = (torch.cat(each) for each in zip(*found, strict=True))
        parts.append((values_NK, ids_C[places_NK]))
    values_NM, ids_NM = (torch.cat(each, dim=1) for each in zip(*parts, strict=True))
    values_NK, places_NK = values_NM.topk(k, dim=1)
    return values_NK, ids_NM.gather(1, places_NK)


def _highest_k(values_NC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same as `topk`; for k = 1 through `max`, which is several times as fast."""
    values_NK, places_NK = values_NC.topk(k, dim=1) if k > 1 else values_NC.max(dim=1, keepdim=True)
    return values_NK, places_NK


def closest(vectors_MH: Tensor, excluded: Sequence[int | None], vocabulary: Vocabulary) -> Tensor:
    """The highest cosine of each vector with a token that is not excluded, `[M]`."""
    left_out_M = torch.tensor([-1 if i is None else int(vocabulary.same_V[i]) for i in excluded])
    blocks = list(zip(unit(vectors_MH).split(_BLOCK), left_out_M.to(vectors_MH.device).split(_BLOCK), strict=True))
    highest_M = torch.full((len(vectors_MH),), -torch.inf)
    for ids_C, _, unit_CH in vocabulary.chunks():
        found = list[Tensor]()
        for block_BH, left_out_B in blocks:
            cosine_BC = block_BH @ unit_CH.T
            place_B = torch.searchsorted(ids_C, left_out_B).clamp(max=len(ids_C) - 1)  # ids rise
            rows_B = (ids_C[place_B] == left_out_B).nonzero().flatten()
            cosine_BC[rows_B, place_B[rows_B]] = -torch.inf
            found.append(cosine_BC.amax(dim=1))
        highest_M = torch.maximum(highest_M, torch.cat(found).cpu())
    return highest_M


def best(values_NC: Tensor, ids_C: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest values of each row with their ids, `[N, k]`; of equal values the first, unlike `topk`."""
    order_NK = values_NC.argsort(dim=1, descending=True, stable=True)[:, :k]
    return values_NC.gather(1, order_NK), ids_C[order_NK]


def merged(parts: Sequence[tuple[Tensor, Tensor]], k: int) -> Tensor:
    """The ids of the k highest values of each row across several parts, `[N, k]`."""
    values_NM, ids_NM = (torch.cat(each, dim=1) for each in zip(*parts, strict=True))
    order_NK = values_NM.argsort(dim=1, descending=True, stable=True)[:, :k]
    return ids_NM.gather(1, order_NK)
