"""Which virtual tokens matter: what the loss does when one is replaced, and how much attention each gets.

Knows nothing of what they decode to.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ptuning.data import Batch, Example, Row
from ptuning.errors import PromptError
from ptuning.evaluation import Resampled, Scores, Table, score_rows
from ptuning.forward import ReadOptions, label_logits
from ptuning.inspection.measures.ladder import untrained
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.model import Backbone, CausalBackbone
from ptuning.prompts import SoftPrompt

MOST_ROWS = 32  # read with each replacement
_CHANGES = {
    "mean": "the virtual token is replaced by the mean of the others; None where it is the only one",
    "init": "it is replaced by what it was before training; None where that is not known",
    "random": "it is replaced by a random ordinary token: the control",
}
_ENDS = {"": "change of the loss a row, in nats", "_low": "lower end of its 95 % interval", "_high": "upper end"}
COLUMNS = {
    "position": "the virtual token's place in the prompt, from 0",
    **{f"{name}{end}": f"{what}: {which}" for name, what in _CHANGES.items() for end, which in _ENDS.items()},
    "attention": "share of the attention at the answer's position that it gets, the mean over layers and heads; None "
    "where the model's attention cannot be seen",
}


@torch.no_grad()
def importance(
    prompt: SoftPrompt,
    backbone: Backbone,
    rows: Sequence[Row],
    seed: int = 0,
    options: ReadOptions = ReadOptions(),
) -> Table:
    """Replaces one virtual token at a time, and measures what that does.

    Args:
        prompt: The prompt, the same for all rows.
        backbone: The base model.
        rows: Rows with answers; 32 of them, drawn at random, are read.
        seed: Of the random tokens and of the bootstrap.
        options: How rows are read.

    Returns:
        A record a virtual token; `COLUMNS` says what they hold. Where nothing hurts more than the control's interval,
        nothing is known of which token matters.

    Raises:
        PromptError: For a conditioned prompt, or one without a task.
    """
    if prompt.is_conditioned:
        raise PromptError("importance of a conditioned prompt", "one that is the same for all rows", "Leave it out")
    if prompt.task is None:
        raise PromptError("importance of a prompt without a task", "one with a template", "Leave it out")
    coder = backbone.coder(prompt.task)
    examples = coder.encode(random.Random(seed).sample(list(rows), min(MOST_ROWS, len(rows))))
    prompt_PH = prompt.embeddings_PH.to(backbone.device)

    def scores(tensor_PH: Tensor, name: str) -> Scores:
        return Scores.one(score_rows(backbone, tensor_PH, examples, coder.label_ids, options, name))

    whole, records = scores(prompt_PH, "importance"), list[dict[str, Any]]()
    attention_P = attention(prompt_PH, backbone, examples)
    for p, others in enumerate(_replacements(prompt, backbone, seed)):
        record: dict[str, Any] = {"position": p, "attention": None if attention_P is None else float(attention_P[p])}
        for name in _CHANGES:
            record |= dict.fromkeys((name, f"{name}_low", f"{name}_high"))
        for name, row_H in others.items():
            changed_PH = prompt_PH.clone()
            changed_PH[p] = row_H
            both = Resampled({"whole": whole, "changed": scores(changed_PH, f"importance of {p}")}, seed)
            change = both.gain("whole", "changed", "loss")
            record |= {name: change.value, f"{name}_low": change.low, f"{name}_high": change.high}
        records.append({column: record[column] for column in COLUMNS})
    return Table(COLUMNS, records)


def _replacements(prompt: SoftPrompt, backbone: Backbone, seed: int) -> list[dict[str, Tensor]]:
    """For each virtual token what may stand in its place."""
    vocabulary, chance = Vocabulary.of(backbone), random.Random(seed)
    prompt_PH, start_PH = prompt.embeddings_PH.to(backbone.device), untrained(prompt, backbone)
    drawn_PH = vocabulary.rows(chance.choices(vocabulary.plain_ids, k=len(prompt_PH)))
    found = []
    for p in range(len(prompt_PH)):
        others = {"random": drawn_PH[p]}
        if len(prompt_PH) > 1:
            others["mean"] = (prompt_PH.sum(dim=0) - prompt_PH[p]) / (len(prompt_PH) - 1)
        if start_PH is not None:
            others["init"] = start_PH[p]
        found.append(others)
    return found


def attention(prompt_PH: Tensor, backbone: Backbone, examples: Sequence[Example]) -> Tensor | None:
    """Share of the attention at each row's first scored position that each virtual token gets, `[P]`.

    Read whole, a row at a time; None where the model does not attend through torch's own function, or reads the
    question with an encoder.
    """
    if not isinstance(backbone, CausalBackbone):
        return None
    total_P, num = torch.zeros(len(prompt_PH)), 0
    for example in examples:
        batch = backbone.collate([example]).to(backbone.device)
        with _Watched(batch) as watched:
            label_logits(backbone, prompt_PH, batch, "splice")
        if not watched.shares:
            return None
        share_T = torch.stack(watched.shares).mean(dim=0)
        is_virtual_T = batch.ids_BT[0] < 0
        places = (-1 - batch.ids_BT[0][is_virtual_T]).cpu()
        total_P[places] += share_T[is_virtual_T].cpu()
        num += 1
    return total_P / num


class _Watched(TorchFunctionMode):
    """While it is on, keeps how attention is shared at the first scored position of a batch's one row."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self._place = int(batch.scored_BT[0].nonzero()[0])
        self.shares: list[Tensor] = []
        """For each layer, the mean over heads, `[T]`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            self._watch(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _watch(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> None:
        own_BND, scale = query[:, :, self._place], options.get("scale") or query.shape[-1] ** -0.5
        keys_BNTD = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores_BNT = (keys_BNTD @ own_BND[..., None])[..., 0].float() * scale
        scores_BNT[..., self._place + 1 :] = -torch.inf
        if attn_mask is not None:
            mask_BNT = attn_mask[:, :, self._place]
            is_bool = mask_BNT.dtype == torch.bool
            scores_BNT = scores_BNT.masked_fill(~mask_BNT, -torch.inf) if is_bool else scores_BNT + mask_BNT
        self.shares.append(scores_BNT.softmax(dim=-1)[0].mean(dim=0))
