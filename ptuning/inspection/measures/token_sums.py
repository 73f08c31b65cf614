"""Virtual tokens as sums of a few tokens: orthogonal matching pursuit over the centred vocabulary, beside chance.

Knows nothing of what a prompt does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptuning.evaluation import Table
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.inspection.vocabulary.neighbours import top

COLUMNS = {
    "position": "the virtual token's place in the prompt, from 0",
    "num_atoms": "tokens that it is made of",
    "tokens": "their texts, in the order they were found",
    "ids": "their ids",
    "weights": "their weights, in the same order",
    "explained": "share of its variance about the vocabulary's mean that they explain",
    "null_median": "the same share for random vectors like the vocabulary's, the median",
    "null_95": "the same, the 95 % point: below it the tokens mean no more than chance",
}


@dataclass(frozen=True)
class Pursuit:
    """What matching pursuit found for N vectors with k atoms."""

    ids_NK: Tensor
    """The atoms' ids."""
    weights_NK: Tensor
    """Their weights, over centred embeddings."""
    explained_N: Tensor
    """Share of the variance that they explain."""


@torch.no_grad()
def sparse(
    prompt_PH: Tensor, vocabulary: Vocabulary, atoms: Sequence[int] = (1, 2, 3, 5), num_null: int = 99, seed: int = 0
) -> Table:
    """Explains each virtual token by a few tokens (orthogonal matching pursuit, Pati et al. 1993).

    Args:
        prompt_PH: The prompt, `[P, H]`.
        vocabulary: The base model's.
        atoms: Numbers of tokens to use.
        num_null: Random vectors like the vocabulary's that are explained in the same way.
        seed: Of those vectors.

    Returns:
        A record for each position and number of atoms; `COLUMNS` says what they hold.
    """
    chance_NH = vocabulary.random_like(num_null, torch.Generator().manual_seed(seed))
    both_NH = torch.cat([prompt_PH.float().to(vocabulary.device), chance_NH])
    records: list[dict[str, Any]] = []
    for num, found in pursue(both_NH, vocabulary, max(atoms)):
        if num not in atoms:
            continue
        chance_N = found.explained_N[len(prompt_PH) :]
        for p in range(len(prompt_PH)):
            ids = found.ids_NK[p].tolist()
            values = (
                *(p, num, vocabulary.texts(ids), ids, found.weights_NK[p].tolist(), float(found.explained_N[p])),
                *(float(chance_N.median()), float(chance_N.quantile(0.95))),
            )
            records.append(dict(zip(COLUMNS, values, strict=True)))
    return Table(COLUMNS, sorted(records, key=lambda each: (each["position"], each["num_atoms"])))


def pursue(vectors_NH: Tensor, vocabulary: Vocabulary, num_atoms: int) -> list[tuple[int, Pursuit]]:
    """Adds the atom that is most like what is left, or its opposite, and weighs all by least squares; each state."""
    centred_NH = vectors_NH - vocabulary.mean_H
    left_NH, chosen, steps = centred_NH, list[Tensor](), list[tuple[int, Pursuit]]()
    for num in range(1, num_atoms + 1):
        _, ids_NK = top(left_NH, vocabulary, num, is_centred=True)
        is_new_NK = torch.stack([(ids_NK != each[:, None]) for each in chosen]).all(0) if chosen else ids_NK >= 0
        chosen.append(ids_NK.gather(1, is_new_NK.float().argmax(dim=1, keepdim=True))[:, 0])
        ids_NA = torch.stack(chosen, dim=1)
        atoms_NAH = vocabulary.matrix_VH[ids_NA].float() - vocabulary.mean_H
        weights_NA1 = torch.linalg.lstsq(atoms_NAH.mT, centred_NH[..., None]).solution
        left_NH = centred_NH - (atoms_NAH.mT @ weights_NA1)[..., 0]
        explained_N = 1 - left_NH.square().sum(dim=1) / centred_NH.square().sum(dim=1).clamp(min=1e-12)
        steps.append((num, Pursuit(ids_NA, weights_NA1[..., 0], explained_N)))
    return steps
