"""One pass over all rows of a batch, as lines: a function of tensors whose shapes follow from the lines' alone.

It makes nothing on the way that depends on the numbers, so it runs on any device without waiting for it, and a GPU can
record it once per shape. Knows nothing of tasks, encoders or optimizers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ptuning.data import IGNORED, Batch
from ptuning.forward.batch_prompt import BatchPrompt, PromptPerRow, StaticPrompt
from ptuning.forward.lines import Lines, num_needed
from ptuning.forward.packing import Sizes, pack
from ptuning.forward.placement import place
from ptuning.model import OVERHEAD_TOKENS, Backbone, CausalBackbone
from ptuning.model.kernels import JointPrefix, num_filling

_MASKED_COST = 1.25  # of a token in packed lines on a GPU, where attention reads a mask; estimated, not measured


def lay_out(backbone: Backbone, prompt: BatchPrompt, batch: Batch, sizes: Sizes | None = None) -> Lines | None:
    """The rows of a batch as lines for `line_logits`, on the CPU; None if the rows have to be run in another way.

    Args:
        backbone: The frozen model.
        prompt: The rows' prompt.
        batch: The rows.
        sizes: How sizes are chosen; None: rounded, unless the model is on a CPU.
    """
    if not isinstance(backbone, CausalBackbone):
        return None
    sizes = sizes or Sizes(are_rounded=backbone.device.type != "cpu")
    packed = _packed(backbone, prompt, batch, sizes)
    if not sizes.are_rounded:
        return packed
    plain = whole_rows(backbone, prompt, batch, sizes)
    if packed is None or plain is None:
        return packed or plain
    return packed if _MASKED_COST * _num_places(packed) < _num_places(plain) else plain


def whole_rows(backbone: CausalBackbone, prompt: BatchPrompt, batch: Batch, sizes: Sizes) -> Lines | None:
    """One whole row per line, for causal attention without a mask; None if the prompt's prefix has been run."""
    if not isinstance(prompt, StaticPrompt | PromptPerRow) or not all(row.answer_ids for row in batch.examples):
        return None
    rows = batch.examples
    one_a_line = [[b] for b in range(len(rows))]
    return Lines.of(rows, [0] * len(rows), one_a_line, is_plain=True, sizes=sizes, most_width=backbone.max_positions)


def _packed(backbone: CausalBackbone, prompt: BatchPrompt, batch: Batch, sizes: Sizes) -> Lines | None:
    """Packed lines with the rows' prefix at the start of the first one; None if the model cannot run them.

    On a CPU also None if the prefix leaves more space empty than a separate run of it costs.
    """
    if not (prompt.has_prefix_to_run and batch.prefix_ids and backbone.can_keep_prefix):
        return None
    if not backbone.supports_joint_prefix:
        return None
    rows, num_prefix = batch.examples, batch.num_prefix_tokens
    assert all(tuple(row.ids[:num_prefix]) == batch.prefix_ids for row in rows), "rows begin with the given prefix"
    rest = [num_needed(row) - num_prefix for row in rows]
    together = pack([num_prefix, *rest], [0] * (1 + len(rows)), sizes)
    first = next(line for line in together if 0 in line)
    in_order = [first, *(line for line in together if line is not first)]
    lines_of_rows = [[b - 1 for b in line if b] for line in in_order]
    least_width = sizes.least_width(max(num_prefix, *rest))
    skipped = [num_prefix] * len(rows)
    lines = Lines.of(rows, skipped, lines_of_rows, batch.prefix_ids, sizes=sizes, least_width=least_width)
    if not backbone.sees_all(num_prefix + lines.shape.width):
        return None
    return lines if sizes.are_rounded or _is_cheaper(lines, rest) else None


def _is_cheaper(lines: Lines, rest: Sequence[int]) -> bool:
    """Whether lines that hold the prefix cost less than a run of it and lines without it."""
    most = _num_places(lines) - lines.shape.num_prefix - OVERHEAD_TOKENS
    if sum(rest) >= most:
        return True
    apart = pack(rest, [0] * len(rest))
    return len(apart) * max(sum(rest[b] for b in line) for line in apart) >= most


def _num_places(lines: Lines) -> int:
    return lines.shape.num_lines * lines.shape.width


def line_logits(backbone: CausalBackbone, prompt: Tensor, lines: Lines) -> Tensor:
    """Logits fp32 at the scored places of lines, in the order that `CausalBackbone.logits_of` says.

    Args:
        backbone: The frozen model.
        prompt: Embeddings of the virtual tokens, `[P, H]`; or `[B, P, H]`, for plain lines.
        lines: On the backbone's device, as `lay_out` makes them.
    """
    shape = lines.shape
    if prompt.ndim == 3:
        prompt = functional.pad(prompt, (0, 0, 0, 0, 0, shape.num_lines - len(prompt)))
    inputs: dict[str, Any] = {"inputs_embeds": place(backbone, prompt, lines.ids_LW), "use_cache": False}
    if shape.is_plain:
        return backbone.logits_of(lines, lines.scored_LK, past_key_values=backbone.passing_cache(), **inputs)
    num_empty = num_filling(shape.num_prefix + shape.width, backbone.dtype, backbone.device)
    return backbone.logits_of(
        lines,
        lines.scored_LK,
        JointPrefix(shape.num_prefix, num_empty),
        attention_mask=lines.blocks_with_joint_prefix(num_empty, backbone.dtype),
        position_ids=lines.positions_LW,
        **inputs,
    )


def in_row_order(backbone: CausalBackbone, logits: Tensor, lines: Lines) -> Tensor:
    """The logits that `CausalBackbone.logits_of` returned for lines, `[N, V]` in row order."""
    return logits if backbone.scores_in_row_order else logits[lines.order_N]


def lines_loss(backbone: CausalBackbone, prompt: Tensor, lines: Lines) -> Tensor:
    """Cross-entropy summed over the label tokens of lines, in nats; arguments as in `line_logits`."""
    logits = line_logits(backbone, prompt, lines)
    targets = lines.targets_N if backbone.scores_in_row_order else lines.targets_LK.flatten()
    return functional.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED)


def loss_and_gradient(backbone: CausalBackbone, prompt: Tensor, lines: Lines) -> tuple[Tensor, Tensor]:
    """`lines_loss`, and its gradient with respect to the prompt; arguments as in `line_logits`."""
    leaf = prompt.detach().requires_grad_()
    with torch.enable_grad():
        loss = lines_loss(backbone, leaf, lines)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient
