"""Label logits of a batch, two ways to the same numbers, and what rows can be continued from.

`splice` is the definition: the virtual tokens' embeddings are put in their places and the model reads the whole row.
`shared_prefix` is the fast way: what all rows of a prompt begin with, virtual tokens and words, is run once and its
keys and values are put before the rest of each row. Knows nothing of losses, labels' meaning or training.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from ptuning.data.batches import IGNORED, Batch, padded
from ptuning.data.examples import Example
from ptuning.errors import ModelError
from ptuning.forward.packing import WIDEST, Lines
from ptuning.forward.placement import place
from ptuning.forward.prefix_cache import Prefix, RowPrompts
from ptuning.model.backbone import OVERHEAD_TOKENS, Backbone, CausalBackbone
from ptuning.model.checkpointing import is_checkpointed
from ptuning.model.kernels.attention import FILLED_TO, SharedHead, num_filling
from ptuning.model.kernels.last_layer import only_scored
from ptuning.model.kernels.switch import fast_kernels

Prompt: TypeAlias = Tensor | RowPrompts | nn.Module
"""The soft prompt of a batch: `[P, H]` for all its rows, `[B, P, H]` with one a row, several that have been run with
each row's choice, or a conditioned encoder, which makes each row its own."""


def label_logits(backbone: Backbone, prompt: Prompt, batch: Batch, path: str = "auto") -> Tensor:
    """Logits at the batch's scored positions.

    Args:
        backbone: The frozen model.
        prompt: The virtual tokens' embeddings: `[P, H]`, `[B, P, H]`, or what makes them.
        batch: Rows on the backbone's device.
        path: splice, shared_prefix, or auto: shared_prefix where the model's cache can be shared.

    Returns:
        `[N, V]` fp32, in row order.

    Raises:
        DataError: When a row is longer than the model's positions; nothing is run then.
        ModelError: When the path is shared_prefix and the model or the prompt cannot be run so.
    """
    backbone.require_room(batch.ids_BT.shape[1])
    require_path(backbone, path)
    return splice(backbone, prompt, batch) if path == "splice" else shared_prefix(backbone, prompt, batch)


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


def require_path(backbone: Backbone, path: str) -> None:
    """Raises `ModelError` when the model cannot be run by that path."""
    if path == "shared_prefix" and not _can_keep(backbone):
        raise ModelError(
            f"forward: shared_prefix with {backbone.name}",
            "a causal model whose layers are all attention, not run again in the backward pass",
            "Use forward: auto",
        )


def splice(backbone: Backbone, prompt: Prompt, batch: Batch) -> Tensor:
    """The reference: every row whole, virtual tokens in their places. Shapes as in `label_logits`."""
    return backbone.logits(place(backbone, embeddings_of(prompt, backbone, batch), batch.ids_BT), batch)


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
    with fast_kernels(backbone.model), only_scored(backbone.model, lines.scored_LW):
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
    with fast_kernels(backbone.model), SharedHead(num_head, num_empty), only_scored(backbone.model, lines.scored_LW):
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


def prefixes_apart(prompt: RowPrompts, examples: Sequence[Example], backbone: Backbone) -> Batch:
    """The rows with their prefixes, which have been run, in columns of their own, and both parts padded in front."""
    rows = [(each.ids[:num], each.ids[num:]) for each, num in zip(examples, prompt.num_run, strict=True)]
    parts = [padded(part, backbone.pad_id, "left") for part in zip(*rows, strict=True)]
    ids_BT, mask_BT = (torch.cat(each, dim=1).to(backbone.device) for each in zip(*parts, strict=True))
    return Batch(ids_BT, mask_BT, torch.full_like(ids_BT, IGNORED), (), ())


@torch.no_grad()
def prefill(backbone: CausalBackbone, prompt: RowPrompts, batch: Batch) -> DynamicCache:
    """Runs rows up to their last token, end to end, and gives each its own keys and values.

    Args:
        backbone: A model for which `can_pack` holds.
        prompt: Each row's, which has been run.
        batch: The rows, what has been run in columns of its own, both parts padded in front.

    Returns:
        Keys and values of all columns but the last, `B` rows; 0 where a row has no token.
    """
    if batch.ids_BT.shape[1] == max(prompt.num_run) + 1:
        return prompt.spread(backbone)[0]
    last_BT = torch.full_like(batch.ids_BT, IGNORED)
    last_BT[:, -1] = 0  # as if it were to be predicted: what comes before it is run
    lines = Lines.of(dataclasses.replace(batch, labels_BT=last_BT), prompt.num_run, prompt.choice)
    inputs = _inputs(backbone, prompt, lines, packs=True)
    with fast_kernels(backbone.model), only_scored(backbone.model, lines.scored_LW):
        backbone.fill(**inputs)
    num_kept, width, cache = max(prompt.num_run), lines.ids_LW.shape[1], backbone.new_cache()
    (rows_N, columns_N), (lines_N, at_N) = lines.columns, lines.places
    kept, _ = prompt.spread(backbone)
    for i, (of_lines, of_rows) in enumerate(zip(inputs["past_key_values"], kept, strict=True)):
        states = [functional.pad(each, (0, 0, 0, batch.ids_BT.shape[1] - 1 - num_kept)) for each in of_rows[:2]]
        for own, line_states in zip(states, of_lines[:2], strict=True):
            own[rows_N, :, columns_N] = line_states[lines_N, :, at_N - width]
        cache.update(states[0], states[1], i)
    return cache


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


def embeddings_of(prompt: Prompt, backbone: Backbone, batch: Batch) -> Tensor:
    """The prompt's embeddings for the batch: `[P, H]`, or `[B, P, H]` with one prompt a row."""
    if isinstance(prompt, Tensor):
        return prompt
    if isinstance(prompt, RowPrompts):
        return prompt.embeddings
    return prompt(backbone.embed(batch.ids_BT.clamp(min=0)), batch.text_BT)
