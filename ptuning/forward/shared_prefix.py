"""The fast path where a prefix has been run, or has to be run apart from the rows: then the rest of each row after it.

Knows nothing of losses or what labels mean.
"""

from typing import Any

from torch import Tensor

from ptuning.data import Batch
from ptuning.forward.batch_prompt import KeptPrompts, Prompt, as_batch_prompt
from ptuning.forward.line_pass import in_row_order
from ptuning.forward.lines import Lines, num_needed
from ptuning.forward.packing import WIDEST, pack
from ptuning.forward.placement import place
from ptuning.model import Backbone, CausalBackbone
from ptuning.model.kernels import FILLED_TO, num_filling


def can_share(backbone: Backbone, prompt: Prompt, batch: Batch) -> bool:
    """Whether the prefix of the rows can be run apart from them."""
    return backbone.can_keep_prefix and as_batch_prompt(prompt).shares(batch)


def shared_prefix(backbone: CausalBackbone, prompt: Prompt, batch: Batch) -> Tensor:
    """Runs the prefix once per prompt, then the rest of the rows. Requires `can_share`.

    Shapes as in `label_logits`.
    """
    kept = as_batch_prompt(prompt).kept(backbone, batch)
    lines, inputs = behind_prefixes(backbone, kept, batch, can_pack(backbone, kept, batch))
    return in_row_order(backbone, backbone.logits_of(lines, lines.scored_LK, **inputs), lines)


def can_pack(backbone: CausalBackbone, prompt: KeptPrompts, batch: Batch, num_more: int = 0) -> bool:
    """Whether the rest of the rows can be packed end to end, with `num_more` tokens after each row."""
    most = FILLED_TO + max(prompt.prefix_lengths) + WIDEST * batch.num_columns + num_more
    return backbone.supports_packing and backbone.sees_all(most)


def behind_prefixes(
    backbone: CausalBackbone, prompt: KeptPrompts, batch: Batch, is_packed: bool
) -> tuple[Lines, dict[str, Any]]:
    """The rest of the rows as lines, and the model's inputs to run them after their kept prefixes."""
    rows, skipped = batch.examples, prompt.prefix_lengths
    lengths = [max(0, num_needed(row) - num) for row, num in zip(rows, skipped, strict=True)]
    of_rows = pack(lengths, prompt.choice) if is_packed else [[b] for b in range(len(rows))]
    lines = Lines.of(rows, skipped, of_rows).to(backbone.device)
    prompt = prompt.part(lines.first)
    num_keys = max(prompt.prefix_lengths) + lines.shape.width
    num_empty = num_filling(num_keys, backbone.dtype, backbone.device) if is_packed else 0
    cache, prefix_mask_LS = prompt.spread(backbone, num_empty)
    return lines, {
        "inputs_embeds": place(backbone, prompt.rows_embeddings, lines.ids_LW),
        "attention_mask": lines.blocks(prefix_mask_LS, backbone.dtype) if is_packed else lines.mask(prefix_mask_LS),
        "position_ids": lines.positions_LW,
        "past_key_values": cache,
        "use_cache": True,
    }
