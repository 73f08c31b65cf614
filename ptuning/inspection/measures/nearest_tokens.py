"""The nearest tokens of each virtual token, compared with its initial token and with chance.

Knows nothing of tasks or of what the prompt does: geometry alone, which says little about meaning (FIDELITY_NOTE).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Self

import torch
from torch import Tensor

from ptuning.errors import PromptError
from ptuning.evaluation import Table
from ptuning.inspection.measures.geometry import percentile
from ptuning.inspection.measures.protocol import Cell, Grid, Measured, Subject
from ptuning.inspection.vocabulary.embeddings import Vocabulary, unit
from ptuning.inspection.vocabulary.neighbours import METRICS, Metric, best, merged, top
from ptuning.inspection.vocabulary.nulls import Nulls, q_values

NAME = "decoding"
FIDELITY_NOTE = (
    "A virtual token that still decodes to its initial token says nothing about what was learned: a token's "
    "neighbourhood is so wide that even large changes stay inside it."
)
_SCALING_NEIGHBOURS = 10  # Conneau et al. 2018, section 2.3
_REFERENCES = 512  # vectors that measure how crowded a token is, at most
_HUB_FACTOR = 10  # a hub is nearest to so many times its share of random vectors, and to more than two
_SIGNIFICANT = 0.05
_CHANCE = (
    "p: how often random vectors come as near to a token, for the kindest of four kinds; q: the same as a false "
    "discovery rate over all virtual tokens"
)
COLUMNS = {
    "position": "the virtual token's place in the prompt, from 0",
    "rank": "1 is the nearest token by the chosen metric",
    "token": "the token's text",
    "id": "its id; of tokens with equal embeddings the lowest id",
    "cosine": "cosine similarity",
    "centred_cosine": "cosine once the vocabulary's mean is subtracted from both",
    "l2": "Euclidean distance",
    "csls": "cross-domain similarity local scaling: twice the cosine, minus how crowded both neighbourhoods are",
    "p": "at rank 1, how often chance comes as near (by cosine) to a token other than the initial one, under the "
    "kindest null; 1 where the token is the initial one; None at other ranks, and where another token "
    "has the highest cosine",
    "q": "p as a false discovery rate over all virtual tokens (Benjamini-Hochberg), including those that decode to "
    "their initial token: if few of many virtual tokens left their initial token, no q can be small",
    "p_by_null": "p under each null that applies",
    "hub_share": "share of random vectors, drawn like the vocabulary, that are nearest to this token",
    "is_hub": "whether that is more than two vectors, and more than ten times an equal share",
    "init_token": "the token that the virtual token was initialised from; None where there is none",
    "is_init": "whether this token is the initial token, or has the same embedding",
    "flags": "special, unused, byte, duplicate",
    "metrics_agree": "how many of the four metrics have this token nearest",
}


def badges(record: Mapping[str, Any]) -> list[str]:
    """The words INIT, HUB and GLITCH that apply to a record."""
    is_glitch = bool({"unused", "byte"} & set(record["flags"]))
    return [
        name for name, holds in (("INIT", record["is_init"]), ("HUB", record["is_hub"]), ("GLITCH", is_glitch)) if holds
    ]


def measure(subject: Subject, earlier: Mapping[str, Measured]) -> Measured:
    """Decodes the shown prompt."""
    table = decode(subject.shown_PH, subject.vocabulary, subject.init_ids, subject.k, subject.metric, seed=subject.seed)
    how = (
        f"One line for each virtual token, with its nearest tokens by {subject.metric.replace('_', ' ')} from left to "
        "right, and their cosine. Grey: chance may come as near (q above 0.05, by cosine), or the token is the "
        f"initial one. {_CHANCE}. INIT: the initial token; HUB: a token that many random vectors decode to; GLITCH: "
        "one that was hardly trained, or a piece of a character."
    )
    return Measured(
        name=NAME,
        title="Nearest tokens",
        how=how,
        table=table,
        chart=_grid(table),
        lines=_lines(table, subject.shown_PH.float().to(subject.vocabulary.device), subject.vocabulary),
    )


def by_position(table: Table) -> list[list[Mapping[str, Any]]]:
    """The records of each virtual token, the nearest token first."""
    return [list(records) for _, records in groupby(table, key=itemgetter("position"))]


def nearest(table: Table) -> list[Mapping[str, Any]]:
    """The record of each virtual token's nearest token."""
    return [record for record in table if record["rank"] == 1]


def _grid(table: Table) -> Grid:
    rows = []
    for mine in by_position(table):
        own = mine[0]
        is_grey = own["q"] is None or own["q"] > _SIGNIFICANT
        cells = [Cell(each["token"], f"{each['cosine']:.2f}", badges(each), is_grey) for each in mine]
        start = "" if own["init_token"] is None else Cell(own["init_token"])
        rows.append([own["position"], start, own["p"], own["q"], *cells])
    ranks = [str(record["rank"]) for record in by_position(table)[0]]
    return Grid("nearest tokens", ["position", "initial token", "p", "q", *ranks], rows)


def _lines(table: Table, prompt_PH: Tensor, vocabulary: Vocabulary) -> list[str]:
    """A line for each virtual token, and what the columns mean."""
    found = [f"{'':>3}  {'initialised from':<18}{'still':<7}{'norm':>7}{'pct':>6}{'p':>7}{'q':>7}  nearest"]
    for mine, norm in zip(by_position(table), prompt_PH.norm(dim=1), strict=True):
        own = mine[0]
        near = "  ".join(f"{each['token']!r} {each['cosine']:.2f}{_bracketed(badges(each))}" for each in mine)
        start = "-" if own["init_token"] is None else repr(own["init_token"])
        chance = "".join("      -" if own[name] is None else f"{own[name]:>7.3f}" for name in ("p", "q"))
        numbers = f"{float(norm):>7.3f}{percentile(norm, vocabulary.norms_V):>6.1f}{chance}"
        found.append(f"{own['position']:>3}  {start:<18}{'yes' if own['is_init'] else 'no':<7}{numbers}  {near}")
    num_init = sum(record["is_init"] for record in nearest(table))
    return [
        *found,
        f"still: whether it decodes to its initial token; pct: percentile of its norm in the vocabulary; {_CHANCE}",
        f"{num_init} of {len(prompt_PH)} virtual tokens still decode to their initial token.",
    ]


def _bracketed(words: Sequence[str]) -> str:
    return f" [{', '.join(words)}]" if words else ""


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
    """Decodes virtual tokens to their nearest tokens, and compares these with chance.

    Args:
        prompt_PH: The prompt, `[P, H]`.
        vocabulary: The base model's vocabulary.
        init_ids: The token that each virtual token was initialised from; None where there is none.
        k: Neighbours of each virtual token.
        metric: How distance is measured: cosine, centred_cosine, l2, csls (Conneau et al. 2018).
        num_null: Random vectors of each kind; p is at least 1 / (1 + num_null).
        seed: Seed of the random vectors.

    Returns:
        A record for each position and rank; `COLUMNS` says what it holds.

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
    near = neighbours(prompt_PH, vocabulary, k, crowding)
    shown_PK = near[metric]
    evidence = _evidence(nulls.p_values(), shown_PK[:, 0].tolist(), near["cosine"][:, 0].tolist(), init_ids, vocabulary)
    of_token = _of_tokens(shown_PK.flatten().unique().tolist(), crowding, nulls, vocabulary)
    records = []
    for p, init in enumerate(init_ids):
        firsts = [int(each[p, 0]) for each in near.values()]
        for record in _records(prompt_PH[p], p, shown_PK[p].tolist(), firsts, vocabulary):
            own, no_evidence = of_token[record["id"]], {"p": None, "q": None}
            known = {**record, **own, **evidence[p], **({} if record["rank"] == 1 else no_evidence)}
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
    """p, q and p by null of each virtual token; p is 1 where it decodes to its initial token.

    q is over all virtual tokens: chance seldom leaves the initial token, so small p would be common among those that
    left it.
    """
    is_init_P = [vocabulary.is_same(i, init) for i, init in zip(shown, init_ids, strict=True)]
    ps = [1.0 if is_init else max(own.values()) for own, is_init in zip(p_by_null, is_init_P, strict=True)]
    qs = q_values(ps)
    return [
        {"p": ps[p], "q": qs[p], "p_by_null": own}
        if shown[p] == by_cosine[p]  # p belongs to the token with the highest cosine
        else {"p": None, "q": None, "p_by_null": own}
        for p, own in enumerate(p_by_null)
    ]


def _of_tokens(
    ids: Sequence[int], crowding: "Crowding", nulls: Nulls, vocabulary: Vocabulary
) -> dict[int, dict[str, Any]]:
    """The columns that depend on the token alone."""
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
    """The columns that depend on a virtual token and a neighbour; `firsts` are the nearest tokens by each metric."""
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
    """How crowded neighbourhoods are, which CSLS subtracts: the mean cosine with the ten nearest of the other kind.

    For tokens the other kind are random vectors with the prompt's own norm and share along the vocabulary's mean; with
    other reference vectors CSLS would mislead.
    """

    own_P: Tensor
    """Crowding of each virtual token among the tokens."""
    references_RH: Tensor
    """Unit vectors that measure the crowding of tokens."""

    @classmethod
    def of(cls, prompt_PH: Tensor, vocabulary: Vocabulary, nulls: Nulls) -> Self:
        """The crowding around a prompt."""
        num = min(_SCALING_NEIGHBOURS, len(vocabulary.different_U))
        a_token = max(1, _REFERENCES // len(prompt_PH))
        parts = [nulls.directions(p, range(p * a_token, (p + 1) * a_token)) for p in range(len(prompt_PH))]
        references_RH = unit(torch.cat(parts))
        own_P = top(prompt_PH.to(vocabulary.device), vocabulary, num)[0].mean(dim=1)
        return cls(own_P, references_RH)

    def around(self, unit_CH: Tensor) -> Tensor:
        """Crowding of tokens among the reference vectors, `[C]`."""
        num = min(_SCALING_NEIGHBOURS, len(self.references_RH))
        return (self.references_RH @ unit_CH.T).topk(num, dim=0).values.mean(dim=0)


def neighbours(prompt_PH: Tensor, vocabulary: Vocabulary, k: int, crowding: Crowding) -> dict[Metric, Tensor]:
    """Ids of the k nearest different tokens by each metric, `[P, k]`; ties go to the lower id."""
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
