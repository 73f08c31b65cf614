"""Each virtual token's nearest vocabulary tokens, beside where it started.

Knows nothing of tasks or of what the prompt does: geometry alone, which says little of meaning (FIDELITY_NOTE).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ptuning.backbone import Backbone
from ptuning.errors import PromptError
from ptuning.forward import embeddings_of
from ptuning.prompt import SoftPrompt
from ptuning.rows import as_row

FIDELITY_NOTE = (
    "A virtual token that still decodes to the token it was initialised from says nothing about what was learned: a "
    "token's neighbourhood is so wide that even large changes stay inside it."
)
_BASE_NOTE = (
    "This is the base of a conditioned prompt; each row's own is the base and what was read of the row, and is shown "
    f"where a row is given. {FIDELITY_NOTE}"
)
Metric = Literal["cosine", "l2"]
_CHUNK = 16384  # vocabulary rows compared at a time, so that memory does not grow with the vocabulary


@dataclass(frozen=True)
class Neighbour:
    """A vocabulary token near a virtual token."""

    token: str
    """The token's text."""
    id: int
    """Its id."""
    similarity: float
    """Cosine, or minus the L2 distance."""


@dataclass(frozen=True)
class VirtualToken:
    """One virtual token."""

    position: int
    """Its place in the prompt, from 0."""
    nearest: list[Neighbour]
    """The nearest tokens, nearest first."""
    init_token: str | None
    """The token it was initialised from; None where it started elsewhere."""
    is_init: bool
    """Whether it still decodes to that token."""
    norm: float
    """Its L2 norm."""
    norm_percentile: float
    """Share of the vocabulary with a smaller norm, 0 to 100."""


@dataclass(frozen=True)
class Inspection:
    """What a prompt decodes to."""

    metric: Metric
    """cosine or l2."""
    tokens: list[VirtualToken]
    """One entry a virtual token."""
    vocabulary_norm_percentiles: dict[str, float]
    """The vocabulary's norms at 5, 50 and 95 %."""
    num_init: int
    """Virtual tokens that still decode to the token they were initialised from."""
    row: Mapping[str, str] | None = None
    """The row whose own prompt this is; None for a prompt that is the same for all rows, or for the base of one."""
    note: str = FIDELITY_NOTE
    """What a decoding can and cannot say."""

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return dataclasses.asdict(self)


@torch.no_grad()
def inspect(
    prompt: SoftPrompt,
    backbone: Backbone,
    k: int = 5,
    metric: Metric = "cosine",
    row: Mapping[str, Any] | None = None,
) -> Inspection:
    """Decodes a prompt to its nearest vocabulary tokens.

    Args:
        prompt: The prompt.
        backbone: The base model it was tuned on; only its input embeddings and tokenizer are used.
        k: Neighbours a virtual token.
        metric: cosine, or l2.
        row: For a conditioned prompt the template's columns, to see what it makes of that row; None: its base.

    Raises:
        PromptError: When the widths differ, `k` is not between 1 and the vocabulary's size, or a row is given to a
            prompt that does not read it.
    """
    vocabulary_VH = backbone.vocabulary_VH
    if prompt.width != backbone.width:
        raise PromptError(
            f"a prompt of width {prompt.width}", f"the base's width {backbone.width}", "Load its own base"
        )
    if not 1 <= k <= len(vocabulary_VH):
        raise PromptError(f"k={k} neighbours", f"from 1 to {len(vocabulary_VH)}", "Correct --top-k")
    if row is None:
        prompt_PH, note = (
            prompt.embeddings_PH.to(backbone.device),
            _BASE_NOTE if prompt.is_conditioned else FIDELITY_NOTE,
        )
    else:
        prompt_PH, note = prompt_of_row(prompt, backbone, row), FIDELITY_NOTE
    init_ids = prompt.init.get("token_ids") or [None] * prompt.num_virtual_tokens
    tokens = _decoded(prompt_PH, init_ids, backbone, k, metric)
    quantiles = [float(_norms(vocabulary_VH).quantile(q)) for q in (0.05, 0.5, 0.95)]
    named = dict(zip(("5", "50", "95"), quantiles, strict=True))
    return Inspection(metric, tokens, named, sum(token.is_init for token in tokens), row and dict(row), note)


def prompt_of_row(prompt: SoftPrompt, backbone: Backbone, row: Mapping[str, Any]) -> Tensor:
    """What a conditioned prompt makes of a row: `[P, H]`; raises `PromptError` for another prompt."""
    if not prompt.is_conditioned or prompt.task is None:
        raise PromptError("a row for a prompt that is the same for every row", "no row", "Leave it out")
    coder = backbone.coder(prompt.task)
    batch = backbone.collate(coder.encode_questions([as_row(row, "the row", coder.columns)])).to(backbone.device)
    return embeddings_of(prompt.on(backbone.device), backbone, batch)[0]


def _decoded(
    prompt_PH: Tensor, init_ids: Sequence[int | None], backbone: Backbone, k: int, metric: Metric
) -> list[VirtualToken]:
    vocabulary_VH = backbone.vocabulary_VH
    similarity_PK, ids_PK = nearest(prompt_PH, vocabulary_VH, k, metric)
    norms_V, norms_P = _norms(vocabulary_VH), prompt_PH.norm(dim=1)
    percentiles_P = (norms_V[None] < norms_P[:, None]).float().mean(dim=1) * 100
    tokens = []
    for position, init_id in enumerate(init_ids):
        ids, similarities = ids_PK[position].tolist(), similarity_PK[position].tolist()
        texts = backbone.tokenizer.batch_decode([[i] for i in ids])
        tokens.append(
            VirtualToken(
                position,
                [Neighbour(*each) for each in zip(texts, ids, similarities, strict=True)],
                None if init_id is None else backbone.tokenizer.decode([init_id]),
                _is_same_token(ids[0], init_id, vocabulary_VH),
                float(norms_P[position]),
                float(percentiles_P[position]),
            )
        )
    return tokens


def nearest(prompt_PH: Tensor, vocabulary_VH: Tensor, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    """The k most similar vocabulary rows of each prompt row: similarities `[P, k]` fp32 and ids `[P, k]`.

    Cosine, or minus the L2 distance. Ties go to the lower id.
    """
    query_PH, first = prompt_PH.float(), 0
    similarities, ids = list[Tensor](), list[Tensor]()
    for rows_CH in vocabulary_VH.split(_CHUNK):
        similarity_PC = _similarity(query_PH, rows_CH.float(), metric)
        order_PK = _order(similarity_PC, k)
        similarities.append(similarity_PC.gather(1, order_PK))
        ids.append(order_PK + first)
        first += len(rows_CH)
    similarity_PN = torch.cat(similarities, dim=1)
    order_PK = _order(similarity_PN, k)
    return similarity_PN.gather(1, order_PK), torch.cat(ids, dim=1).gather(1, order_PK)


def _order(similarity_PN: Tensor, k: int) -> Tensor:
    """Places of the k highest numbers of each row, highest first; of equal ones the first, as topk does not promise."""
    return similarity_PN.argsort(dim=1, descending=True, stable=True)[:, :k]


def _similarity(query_PH: Tensor, rows_CH: Tensor, metric: Metric) -> Tensor:
    if metric == "l2":
        return -torch.cdist(query_PH, rows_CH, compute_mode="donot_use_mm_for_euclid_dist")
    unit = torch.nn.functional.normalize
    return unit(query_PH, dim=1) @ unit(rows_CH, dim=1).T


def _norms(vocabulary_VH: Tensor) -> Tensor:
    return torch.cat([rows.float().norm(dim=1) for rows in vocabulary_VH.split(_CHUNK)])


def _is_same_token(nearest_id: int, init_id: int | None, vocabulary_VH: Tensor) -> bool:
    """Whether the nearest token is the initial one, or a duplicate of its row."""
    if init_id is None:
        return False
    return nearest_id == init_id or bool((vocabulary_VH[nearest_id] == vocabulary_VH[init_id]).all())


def table(inspection: Inspection) -> Sequence[str]:
    """The inspection as lines for a terminal."""
    norms = inspection.vocabulary_norm_percentiles
    lines = [
        *([f"the prompt made of {dict(inspection.row)}"] if inspection.row else []),
        f"nearest vocabulary tokens by {inspection.metric}; vocabulary norms: "
        + ", ".join(f"{value:.3f} at {share} %" for share, value in norms.items()),
        f"{'':>3}  {'initialised from':<18}{'still':<7}{'norm':>7}{'pct':>6}  nearest",
    ]
    for token in inspection.tokens:
        near = "  ".join(f"{each.token!r} {each.similarity:.2f}" for each in token.nearest)
        start = "-" if token.init_token is None else repr(token.init_token)
        still = "yes" if token.is_init else "no"
        numbers = f"{token.norm:>7.3f}{token.norm_percentile:>6.1f}"
        lines.append(f"{token.position:>3}  {start:<18}{still:<7}{numbers}  {near}")
    total = len(inspection.tokens)
    lines.append(f"{inspection.num_init} of {total} virtual tokens still decode to their initial token.")
    return [*lines, inspection.note]
