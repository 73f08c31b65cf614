"""The fast path: runs the prefix of all rows once, and then the rest of each row after it.

Knows nothing of losses or what labels mean.
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
    """Whether the prefix of the rows can be run apart from them."""
    return backbone.can_keep_prefix and as_batch_prompt(prompt).shares(batch)


def shared_prefix(backbone: Backbone, prompt: Prompt, batch: Batch) -> Tensor:
    """Runs the prefix once per prompt, then the rest of the rows; uses `splice` if the rows share no prefix.

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
    is_packed = can_pack(backbone, kept, batch)
    lines = PackedLines.of(batch, kept.prefix_lengths, kept.choice if is_packed else None)
    with backbone.fast_kernels(lines.scored_LW):
        logits_NV = backbone.scored_logits(lines.scored_LW, **inputs_behind(backbone, kept, lines, is_packed))
    return logits_NV[lines.order_N]


def _lines_with_prefix(backbone: CausalBackbone, batch: Batch) -> PackedLines | None:
    """Packed lines with the prefix at the start of the first one; None if the model cannot run them.

    Also None if the prefix leaves more space empty than a separate run of it costs.
    """
    if not (
        backbone.supports_joint_prefix and backbone.sees_all(WIDEST * batch.ids_BT.shape[1] + batch.num_prefix_tokens)
    ):
        return None
    num_rows, num_prefix = len(batch.ids_BT), batch.num_prefix_tokens
    lengths, groups = [num_prefix] * num_rows, [0] * num_rows
    together = PackedLines.of(batch, lengths, groups, batch.prefix_ids)
    apart = PackedLines.of(batch, lengths, groups)
    is_cheaper = together.ids_LW.numel() <= apart.ids_LW.numel() + num_prefix + OVERHEAD_TOKENS
    return together if is_cheaper else None


def _with_joint_prefix(backbone: CausalBackbone, prompt_PH: Tensor, batch: Batch, lines: PackedLines) -> Tensor:
    """Runs lines whose first one begins with the prefix; every line sees the prefix's keys and values.

    This is one pass over the weights instead of two. Shapes as in `label_logits`.
    """
    num_prefix = batch.num_prefix_tokens
    num_empty = num_filling(num_prefix + lines.ids_LW.shape[1], backbone.dtype, backbone.device)
    with backbone.fast_kernels(lines.scored_LW, JointPrefix(num_prefix, num_empty)):
        logits_NV = backbone.scored_logits(
            lines.scored_LW,
            inputs_embeds=place(backbone, prompt_PH, lines.ids_LW),
            attention_mask=lines.blocks_with_joint_prefix(num_prefix, num_empty, backbone.dtype),
            position_ids=lines.positions_LW,
            use_cache=False,
        )
    return logits_NV[lines.order_N]


def can_pack(backbone: CausalBackbone, prompt: KeptPrompts, batch: Batch, num_more: int = 0) -> bool:
    """Whether the rest of the rows can be packed end to end, with `num_more` tokens after each row."""
    most = FILLED_TO + max(prompt.prefix_lengths) + WIDEST * batch.ids_BT.shape[1] + num_more
    return backbone.supports_packing and backbone.sees_all(most)


def inputs_behind(backbone: CausalBackbone, prompt: KeptPrompts, lines: PackedLines, is_packed: bool) -> dict[str, Any]:
    """The model's inputs to run lines after their kept prefixes."""
    prompt = prompt.part(lines.first)
    num_keys = max(prompt.prefix_lengths) + lines.ids_LW.shape[1]
    num_empty = num_filling(num_keys, backbone.dtype, backbone.device) if is_packed else 0
    cache, prefix_mask_LS = prompt.spread(backbone, num_empty)
    return {
        "inputs_embeds": place(backbone, prompt.rows_embeddings, lines.ids_LW),
        "attention_mask": lines.blocks(prefix_mask_LS, backbone.dtype) if is_packed else lines.mask(prefix_mask_LS),
        "position_ids": lines.positions_LW,
        "past_key_values": cache,
        "use_cache": True,
    }
