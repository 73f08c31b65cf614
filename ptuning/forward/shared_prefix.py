"""The fast way: what all rows of a prompt begin with is run once, and the rest of the rows behind it.

Knows nothing of losses or labels' meaning.
"""

from typing import Any

from torch import Tensor

from ptuning.data import Batch
from ptuning.forward.batch_prompt import KeptPrompts, Prompt, as_batch_prompt
from ptuning.forward.packing import WIDEST, PackedLines
from ptuning.forward.placement import place
from ptuning.forward.splice import splice
from ptuning.model import OVERHEAD_TOKENS, Backbone, CausalBackbone
from ptuning.model.kernels import FILLED_TO, JointPrefix, num_filling


def can_share(backbone: Backbone, prompt: Prompt, batch: Batch) -> bool:
    """Whether what the rows begin with can be run before the rows."""
    return backbone.can_keep_prefix and as_batch_prompt(prompt).shares(batch)


def shared_prefix(backbone: Backbone, prompt: Prompt, batch: Batch) -> Tensor:
    """What the rows begin with once a prompt at batch 1, then the rest of the rows; spliced where they share nothing.

    Shapes as in `label_logits`.
    """
    prompt = as_batch_prompt(prompt)
    if not can_share(backbone, prompt, batch):
        return splice(backbone, prompt, batch)
    assert isinstance(backbone, CausalBackbone)
    if prompt.has_prefix_to_run:
        joint = _lines_with_prefix(backbone, batch)
        if joint is not None:
            return _with_joint_prefix(backbone, prompt.embeddings(backbone, batch), batch, joint)
    kept = prompt.kept(backbone, batch)
    packs = can_pack(backbone, kept, batch)
    lines = PackedLines.of(batch, kept.prefix_lengths, kept.choice if packs else None)
    with backbone.fast_kernels(lines.scored_LW):
        logits_NV = backbone.scored_logits(lines.scored_LW, **inputs_behind(backbone, kept, lines, packs))
    return logits_NV[lines.order_N]


def _lines_with_prefix(backbone: CausalBackbone, batch: Batch) -> PackedLines | None:
    """The rows laid end to end, what they begin with at the start of the first line; None where that cannot be.

    Nor where it leaves more empty than a run of what they begin with costs.
    """
    if not (
        backbone.supports_joint_prefix and backbone.sees_all(WIDEST * batch.ids_BT.shape[1] + batch.num_prefix_tokens)
    ):
        return None
    num_rows, num_prefix = len(batch.ids_BT), batch.num_prefix_tokens
    layout = batch, [num_prefix] * num_rows, [0] * num_rows
    together, apart = PackedLines.of(*layout, prefix_ids=batch.prefix_ids), PackedLines.of(*layout)
    is_less = together.ids_LW.numel() <= apart.ids_LW.numel() + num_prefix + OVERHEAD_TOKENS
    return together if is_less else None


def _with_joint_prefix(backbone: CausalBackbone, prompt_PH: Tensor, batch: Batch, lines: PackedLines) -> Tensor:
    """What the rows begin with at the start of the first line, and its keys and values before those of every line.

    One pass over the weights in place of two. Shapes as in `label_logits`.
    """
    num_prefix = batch.num_prefix_tokens
    num_empty = num_filling(num_prefix + lines.ids_LW.shape[1], backbone.dtype, backbone.device)
    with backbone.fast_kernels(lines.scored_LW, JointPrefix(num_prefix, num_empty)):
        logits_NV = backbone.scored_logits(
            lines.scored_LW,
            inputs_embeds=place(backbone, prompt_PH, lines.ids_LW),
            attention_mask=lines.blocks_behind_head(num_prefix, num_empty, backbone.dtype),
            position_ids=lines.positions_LW,
            use_cache=False,
        )
    return logits_NV[lines.order_N]


def can_pack(backbone: CausalBackbone, prompt: KeptPrompts, batch: Batch, num_more: int = 0) -> bool:
    """Whether what is left of the rows can be laid end to end, and so many tokens more behind each."""
    most = FILLED_TO + max(prompt.prefix_lengths) + WIDEST * batch.ids_BT.shape[1] + num_more
    return backbone.supports_packing and backbone.sees_all(most)


def inputs_behind(backbone: CausalBackbone, prompt: KeptPrompts, lines: PackedLines, packs: bool) -> dict[str, Any]:
    """What the model is given to run lines behind what has been run of them."""
    prompt = prompt.part(lines.first)
    num_keys = max(prompt.prefix_lengths) + lines.ids_LW.shape[1]
    num_empty = num_filling(num_keys, backbone.dtype, backbone.device) if packs else 0
    cache, prefix_mask_LS = prompt.spread(backbone, num_empty)
    return {
        "inputs_embeds": place(backbone, prompt.rows_embeddings, lines.ids_LW),
        "attention_mask": lines.blocks(prefix_mask_LS, backbone.dtype) if packs else lines.mask(prefix_mask_LS),
        "position_ids": lines.positions_LW,
        "past_key_values": cache,
        "use_cache": True,
    }
