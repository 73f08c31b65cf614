"""Virtual tokens as sums of a few tokens (orthogonal matching pursuit over the centred vocabulary), beside chance.

Knows nothing of what a prompt does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptuning.evaluation import Table
from ptuning.inspection.measures.protocol import Measured, Subject
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.inspection.vocabulary.neighbours import top

NAME = "atoms"
_MOST_SHOWN = 3  # atoms of each virtual token that people see first
COLUMNS = {
    "position": "the virtual token's place in the prompt, from 0",
    "num_atoms": "number of tokens in the sum",
    "tokens": "their texts, in the order in which they were found",
    "ids": "their ids",
    "weights": "their weights, in the same order",
    "explained": "share of its variance about the vocabulary's mean that they explain",
    "null_median": "median of the same share for random vectors drawn like the vocabulary",
    "null_95": "95 % point of the same: below it the tokens mean no more than chance",
}


@dataclass(frozen=True)
class Pursuit:
    """What matching pursuit found for N vectors with k atoms."""

    ids_NK: Tensor
    """Ids of the atoms."""
    weights_NK: Tensor
    """Their weights; they multiply centred embeddings."""
    explained_N: Tensor
    """Share of the variance that they explain."""


def measure(subject: Subject, earlier: Mapping[str, Measured]) -> Measured:
    """Explains the shown prompt."""
    table = sparse(subject.shown_PH, subject.vocabulary, seed=subject.seed)
    num = min(_MOST_SHOWN, max(table.column("num_atoms")))
    columns = {name: COLUMNS[name] for name in ("position", "tokens", "explained", "null_95")}
    shown = [{name: record[name] for name in columns} for record in table if record["num_atoms"] == num]
    how = (
        "Each virtual token as a sum of a few tokens (orthogonal matching pursuit), and the share of it that they "
        "explain. Below null_95, which random vectors reach in 5 % of cases, the tokens mean no more than chance."
    )
    return Measured(name=NAME, title=f"As sums of {num} tokens", how=how, table=table, chart=Table(columns, shown))


@torch.no_grad()
def sparse(
    prompt_PH: Tensor, vocabulary: Vocabulary, atoms: Sequence[int] = (1, 2, 3, 5), num_null: int = 99, seed: int = 0
) -> Table:
    """Explains each virtual token by a few tokens (orthogonal matching pursuit, Pati et al. 1993).

    Args:
        prompt_PH: The prompt, `[P, H]`.
        vocabulary: The base model's vocabulary.
        atoms: How many tokens the sums have.
        num_null: Random vectors, drawn like the vocabulary, that are explained in the same way.
        seed: Seed of these vectors.

    Returns:
        A record for each position and number of atoms; `COLUMNS` says what it holds.
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
            records.append(
                {
                    "position": p,
                    "num_atoms": num,
                    "tokens": vocabulary.texts(ids),
                    "ids": ids,
                    "weights": found.weights_NK[p].tolist(),
                    "explained": float(found.explained_N[p]),
                    "null_median": float(chance_N.median()),
                    "null_95": float(chance_N.quantile(0.95)),
                }
            )
    return Table(COLUMNS, sorted(records, key=lambda each: (each["position"], each["num_atoms"])))


def pursue(vectors_NH: Tensor, vocabulary: Vocabulary, num_atoms: int) -> list[tuple[int, Pursuit]]:
    """Finds atoms one by one, each the token most parallel to the residual; least squares weighs all found so far.

    Returns:
        For 1, 2, ... atoms their number and what was found.
    """
    centred_NH = vectors_NH - vocabulary.mean_H
    left_NH, chosen, steps = centred_NH, list[Tensor](), list[tuple[int, Pursuit]]()
    for num in range(1, num_atoms + 1):
        _, ids_NK = top(left_NH, vocabulary, num, is_centred=True)
        is_new_NK = torch.stack([(ids_NK != each[:, None]) for each in chosen]).all(0) if chosen else ids_NK >= 0
        chosen.append(ids_NK.gather(1, is_new_NK.float().argmax(dim=1, keepdim=True))[:, 0])
        ids_NA = torch.stack(chosen, dim=1)
        atoms_NAH = vocabulary.rows(ids_NA) - vocabulary.mean_H
        weights_NA1 = torch.linalg.lstsq(atoms_NAH.mT, centred_NH[..., None]).solution
        left_NH = centred_NH - (atoms_NAH.mT @ weights_NA1)[..., 0]
        explained_N = 1 - left_NH.square().sum(dim=1) / centred_NH.square().sum(dim=1).clamp(min=1e-12)
        steps.append((num, Pursuit(ids_NA, weights_NA1[..., 0], explained_N)))
    return steps
