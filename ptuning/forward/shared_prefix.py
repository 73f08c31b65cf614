"""The fast way: what all rows of a prompt begin with is run once, and the rest of the rows behind it.

Knows nothing of losses or labels' meaning.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ptuning.data import Batch
from ptuning.forward.batch_prompt import RowPrompts
from ptuning.forward.packing import WIDEST, Lines
from ptuning.forward.placement import place
from ptuning.forward.prefix_cache import Prefix
from ptuning.forward.splice import Prompt, splice
from ptuning.model import OVERHEAD_TOKENS, Backbone, CausalBackbone, is_checkpointed
from ptuning.model.kernels import FILLED_TO, JointPrefix, num_filling


def can_share(backbone: Backbone, prompt: Prompt, batch: Batch) -> bool:
    """Whether what the rows begin with can be run before the rows."""
    if isinstance(prompt, RowPrompts):
        return _can_keep(backbone) and prompt.begins(batch)
    return can_begin(backbone, prompt, batch.shared_ids)


def begin(backbone: Backbone, prompt: Prompt, shared_ids: Sequence[int], path: str = "auto") -> Prefix | None:
    """What all rows of one prompt begin with, run once, to stand before any of them; None where that cannot be."""
    if not can_begin(backbone, prompt, shared_ids, path):
        return None
    assert isinstance(backbone, CausalBackbone)
    assert isinstance(prompt, Tensor)
    backbone.require_room(len(shared_ids))
    return Prefix.of(backbone, prompt, shared_ids)


def can_begin(backbone: Backbone, prompt: Prompt, shared_ids: Sequence[int], path: str = "auto") -> bool:
    """Whether what all rows of one prompt begin with can be run before any of them."""
    is_one = isinstance(prompt, Tensor) and prompt.ndim == 2
    return path != "splice" and is_one and len(shared_ids) > 0 and _can_keep(backbone)


def _can_keep(backbone: Backbone) -> bool:
    """Whether keys and values can be kept: not where layers are run again in the backward pass."""
    return backbone.shares_prefix and not is_checkpointed(backbone.model)


def shared_prefix(backbone: Backbone, prompt: Prompt, batch: Batch) -> Tensor:
    """What the rows begin with once a prompt at batch 1, then the rest of the rows; spliced where they share nothing.

    Shapes as in `label_logits`.
    """
    if not can_share(backbone, prompt, batch):
        return splice(backbone, prompt, batch)
    assert isinstance(backbone, CausalBackbone)
    if isinstance(prompt, Tensor):
        lines = _lines_behind_head(backbone, batch)
        if lines is not None:
            return _joined(backbone, prompt, batch, lines)
        prompt = RowPrompts.same(prompt, Prefix.of(backbone, prompt, batch.shared_ids), len(batch.ids_BT))
    assert isinstance(prompt, RowPrompts)
    packs = can_pack(backbone, prompt, batch)
    lines = Lines.of(batch, prompt.num_run, prompt.choice if packs else None)
    with backbone.fast_kernels(lines.scored_LW):
        logits_NV = backbone.scored_logits(lines.scored_LW, **_inputs(backbone, prompt, lines, packs))
    return logits_NV[lines.order_N]


def _lines_behind_head(backbone: CausalBackbone, batch: Batch) -> Lines | None:
    """The rows laid end to end, what they begin with at the start of the first line; None where that cannot be.

    Nor where it leaves more empty than a run of what they begin with costs.
    """
    if not (backbone.joins and backbone.sees_all(WIDEST * batch.ids_BT.shape[1] + batch.num_shared)):
        return None
    num_rows, num_head = len(batch.ids_BT), batch.num_shared
    layout = batch, [num_head] * num_rows, [0] * num_rows
    together, apart = Lines.of(*layout, head_ids=batch.shared_ids), Lines.of(*layout)
    is_less = together.ids_LW.numel() <= apart.ids_LW.numel() + num_head + OVERHEAD_TOKENS
    return together if is_less else None


def _joined(backbone: CausalBackbone, prompt_PH: Tensor, batch: Batch, lines: Lines) -> Tensor:
    """What the rows begin with at the start of the first line, and its keys and values before those of every line.

    One pass over the weights in place of two. Shapes as in `label_logits`.
    """
    num_head = batch.num_shared
    num_empty = num_filling(num_head + lines.ids_LW.shape[1], backbone.dtype, backbone.device)
    with backbone.fast_kernels(lines.scored_LW, JointPrefix(num_head, num_empty)):
        logits_NV = backbone.scored_logits(
            lines.scored_LW,
            inputs_embeds=place(backbone, prompt_PH, lines.ids_LW),
            attention_mask=lines.blocks_behind_head(num_head, num_empty, backbone.dtype),
            position_ids=lines.positions_LW,
            use_cache=False,
        )
    return logits_NV[lines.order_N]


def can_pack(backbone: CausalBackbone, prompt: RowPrompts, batch: Batch, num_more: int = 0) -> bool:
    """Whether what is left of the rows can be laid end to end, and so many tokens more behind each."""
    most = FILLED_TO + max(prompt.num_run) + WIDEST * batch.ids_BT.shape[1] + num_more
    return backbone.packs and backbone.sees_all(most)


def _inputs(backbone: CausalBackbone, prompt: RowPrompts, lines: Lines, packs: bool) -> dict[str, Any]:
    """What the model is given to run lines behind what has been run of them."""
    prompt = dataclasses.replace(prompt, choice=tuple(prompt.choice[row] for row in lines.first))
    num_keys = max(prompt.num_run) + lines.ids_LW.shape[1]
    num_empty = num_filling(num_keys, backbone.dtype, backbone.device) if packs else 0
    cache, prefix_mask_LS = prompt.spread(backbone, num_empty)
    return {
        "inputs_embeds": place(backbone, prompt.embeddings, lines.ids_LW),
        "attention_mask": lines.blocks(prefix_mask_LS, backbone.dtype) if packs else lines.mask(prefix_mask_LS),
        "position_ids": lines.positions_LW,
        "past_key_values": cache,
        "use_cache": True,
    }
