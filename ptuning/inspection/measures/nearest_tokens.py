"""Each virtual token's nearest vocabulary tokens, beside where it began and beside chance.

Knows nothing of tasks or of what the prompt does: geometry alone, which says little of meaning (FIDELITY_NOTE).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ptuning.errors import PromptError
from ptuning.evaluation import Table
from ptuning.inspection.vocabulary.embeddings import Vocabulary, unit
from ptuning.inspection.vocabulary.neighbours import best, merged, top
from ptuning.inspection.vocabulary.nulls import Nulls, q_values

FIDELITY_NOTE = (
    "A virtual token that still decodes to the token it was initialised from says nothing about what was learned: a "
    "token's neighbourhood is so wide that even large changes stay inside it."
)
Metric = Literal["cosine", "centred_cosine", "l2", "csls"]
METRICS: tuple[Metric, ...] = ("cosine", "centred_cosine", "l2", "csls")
_SCALING_NEIGHBOURS = 10  # Conneau et al. 2018, section 2.3
_REFERENCES = 512  # vectors that a token's crowding is judged by, at most
_HUB_FACTOR = 10  # a hub draws so many times its share of random vectors, and more than two of them

CHANCE = "p: how often random vectors, at best of four kinds, come as near to a token; q: p, over all virtual tokens"
"""What p and q are, in a line, for those who read a decoding."""
COLUMNS = {
    "position": "the virtual token's place in the prompt, from 0",
    "rank": "1 is the nearest token by the chosen metric",
    "token": "the token's text",
    "id": "its id; of tokens with equal embeddings the lowest",
    "cosine": "cosine similarity",
    "centred_cosine": "cosine once the vocabulary's mean is subtracted from both",
    "l2": "Euclidean distance",
    "csls": "cross-domain similarity local scaling: twice the cosine less how crowded both neighbourhoods are",
    "p": "at rank 1, how often chance comes as near (by cosine) to a token other than the initial one, under the "
    "kindest of the nulls; 1 where the token is the initial one; None at other ranks, and where another token "
    "has the highest cosine",
    "q": "p as a false discovery rate over all virtual tokens (Benjamini-Hochberg), those that decode to their initial "
    "token among them: with many virtual tokens and few that left theirs, no q can be small",
    "p_by_null": "p under each null that applies",
    "hub_share": "share of random vectors like the vocabulary's that are nearest to this token",
    "is_hub": "whether that is more than two vectors, and ten times what it would be if all tokens drew alike",
    "init_token": "the token that the virtual token was initialised from; None where it was none",
    "is_init": "whether this token is that one, or has its embedding",
    "flags": "special, unused, byte, duplicate",
    "metrics_agree": "how many of the four metrics have this token nearest",
}


def badges(record: Mapping[str, Any]) -> list[str]:
    """INIT, HUB, GLITCH, as they apply to a record."""
    is_glitch = bool({"unused", "byte"} & set(record["flags"]))
    return [
        name for name, holds in (("INIT", record["is_init"]), ("HUB", record["is_hub"]), ("GLITCH", is_glitch)) if holds
    ]


@torch.no_grad()
def decode(
    prompt_PH: Tensor,
    vocabulary: Vocabulary,
    init_ids: Sequence[int | None] | None = None,
    k: int = 5,
    metric: Metric = "cosine",
    num_null: int = 499,
    seed: int = 0,
) -> Table:
    """Decodes virtual tokens to their nearest vocabulary tokens, each beside what chance gives.

    Args:
        prompt_PH: The prompt, `[P, H]`.
        vocabulary: The base model's.
        init_ids: The token each virtual token was initialised from, None where it was none.
        k: Neighbours a virtual token.
        metric: What near means: cosine, centred_cosine, l2, csls (Conneau et al. 2018).
        num_null: Random vectors of each kind; p is at least 1 / (1 + num_null).
        seed: Of the random vectors.

    Returns:
        A record for each position and rank; `COLUMNS` says what they hold.

    Raises:
        PromptError: When the widths differ, or `k` is not between 1 and the number of different tokens.
    """
    if prompt_PH.shape[1] != vocabulary.width:
        raise PromptError(
            f"a prompt of width {prompt_PH.shape[1]}", f"the base's width {vocabulary.width}", "Load its own base"
        )
    if not 1 <= k <= len(vocabulary.different_U):
        raise PromptError(f"k={k} neighbours", f"from 1 to {len(vocabulary.different_U)}", "Correct --top-k")
    init_ids = list(init_ids or [None] * len(prompt_PH))
    nulls = Nulls(vocabulary, prompt_PH, init_ids, num_null, seed)
    crowding = Crowding.of(prompt_PH, vocabulary, nulls)
    nearest = neighbours(prompt_PH, vocabulary, k, crowding)
    shown_PK = nearest[metric]
    evidence = _evidence(
        nulls.p_values(), shown_PK[:, 0].tolist(), nearest["cosine"][:, 0].tolist(), init_ids, vocabulary
    )
    of_token = _of_tokens(shown_PK.flatten().unique().tolist(), crowding, nulls, vocabulary)
    records = []
    for p, init in enumerate(init_ids):
        firsts = [int(each[p, 0]) for each in nearest.values()]
        for record in _records(prompt_PH[p], p, shown_PK[p].tolist(), firsts, vocabulary):
            own, none = of_token[record["id"]], {"p": None, "q": None}
            known = {**record, **own, **evidence[p], **({} if record["rank"] == 1 else none)}
            known["csls"] = 2 * record["cosine"] - float(crowding.own_P[p]) - own["crowd"]
            known["init_token"] = None if init is None else vocabulary.texts([init])[0]
            known["is_init"] = vocabulary.is_same(record["id"], init)
            records.append({name: known[name] for name in COLUMNS})
    return Table(COLUMNS, records)


def _evidence(
    p_by_null: Sequence[dict[str, float]],
    shown: Sequence[int],
    by_cosine: Sequence[int],
    init_ids: Sequence[int | None],
    vocabulary: Vocabulary,
) -> list[dict[str, Any]]:
    """p, q and p by null of each virtual token; p is 1 where it decodes to its initial token, which was no choice.

    q over all: to leave is itself what chance seldom does, so that among those that left small p would be common.
    """
    is_init_P = [vocabulary.is_same(i, init) for i, init in zip(shown, init_ids, strict=True)]
    ps = [1.0 if is_init else max(own.values()) for own, is_init in zip(p_by_null, is_init_P, strict=True)]
    qs = q_values(ps)
    return [
        {"p": ps[p], "q": qs[p], "p_by_null": own}
        if shown[p] == by_cosine[p]  # p is that of the highest cosine
        else {"p": None, "q": None, "p_by_null": own}
        for p, own in enumerate(p_by_null)
    ]


def _of_tokens(
    ids: Sequence[int], crowding: "Crowding", nulls: Nulls, vocabulary: Vocabulary
) -> dict[int, dict[str, Any]]:
    """What is known of tokens whatever the virtual token."""
    hubs, crowds = nulls.hub_counts(), crowding.around(unit(vocabulary.rows(ids))).tolist()
    return {
        i: {
            "crowd": crowd,
            "hub_share": hubs.get(i, 0) / nulls.num,
            "is_hub": _is_hub(hubs.get(i, 0), nulls.num, vocabulary),
            "flags": vocabulary.flags(i),
        }
        for i, crowd in zip(ids, crowds, strict=True)
    }


def _is_hub(count: int, num_null: int, vocabulary: Vocabulary) -> bool:
    return count > 2 and count / num_null > _HUB_FACTOR / len(vocabulary.different_U)


def _records(
    own_H: Tensor, p: int, ids: Sequence[int], firsts: Sequence[int], vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """What is known of a virtual token's neighbours by themselves; `firsts` are the nearest by every metric."""
    own_1H, rows_KH = own_H[None].float().to(vocabulary.device), vocabulary.rows(ids)
    cosine_K = unit(rows_KH) @ unit(own_1H)[0]
    columns = {
        "token": vocabulary.texts(ids),
        "id": ids,
        "cosine": cosine_K.tolist(),
        "centred_cosine": (unit(rows_KH - vocabulary.mean_H) @ unit(own_1H - vocabulary.mean_H)[0]).tolist(),
        "l2": (rows_KH - own_1H).norm(dim=1).tolist(),
        "metrics_agree": [firsts.count(i) for i in ids],
    }
    return [
        {"position": p, "rank": rank + 1, **{name: values[rank] for name, values in columns.items()}}
        for rank in range(len(ids))
    ]


@dataclass(frozen=True)
class Crowding:
    """How crowded neighbourhoods are, which CSLS takes off: the mean cosine with the ten nearest of the other kind.

    A token's is judged by vectors of the prompt's own norm and share along the vocabulary's mean: by a reference set of
    another kind CSLS would mislead.
    """

    own_P: Tensor
    """Of each virtual token, among tokens."""
    references_RH: Tensor
    """Unit vectors that tokens are judged by."""

    @classmethod
    def of(cls, prompt_PH: Tensor, vocabulary: Vocabulary, nulls: Nulls) -> Self:
        """A prompt's."""
        num = min(_SCALING_NEIGHBOURS, len(vocabulary.different_U))
        a_token = max(1, _REFERENCES // len(prompt_PH))
        parts = [nulls.directions(p, range(p * a_token, (p + 1) * a_token)) for p in range(len(prompt_PH))]
        references_RH = unit(torch.cat(parts))
        own_P = top(prompt_PH.to(vocabulary.device), vocabulary, num)[0].mean(dim=1)
        return cls(own_P, references_RH)

    def around(self, unit_CH: Tensor) -> Tensor:
        """Of tokens, `[C]`."""
        num = min(_SCALING_NEIGHBOURS, len(self.references_RH))
        return (self.references_RH @ unit_CH.T).topk(num, dim=0).values.mean(dim=0)


def neighbours(prompt_PH: Tensor, vocabulary: Vocabulary, k: int, crowding: Crowding) -> dict[Metric, Tensor]:
    """Ids of the k nearest different tokens by every metric, `[P, k]`; ties go to the lower id."""
    own_PH = prompt_PH.float().to(vocabulary.device)
    found: dict[Metric, list[tuple[Tensor, Tensor]]] = {metric: [] for metric in METRICS}
    for ids_C, rows_CH, unit_CH in vocabulary.chunks():
        cosine_PC = unit(own_PH) @ unit_CH.T
        values: dict[Metric, Tensor] = {
            "cosine": cosine_PC,
            "centred_cosine": unit(own_PH - vocabulary.mean_H) @ unit(rows_CH - vocabulary.mean_H).T,
            "l2": -torch.cdist(own_PH, rows_CH, compute_mode="donot_use_mm_for_euclid_dist"),
            "csls": 2 * cosine_PC - crowding.own_P[:, None] - crowding.around(unit_CH),
        }
        for metric, values_PC in values.items():
            found[metric].append(best(values_PC, ids_C, k))
    return {metric: merged(parts, k) for metric, parts in found.items()}
