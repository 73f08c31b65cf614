"""Label logits of a batch, two ways to the same numbers.

`splice` is the definition: the virtual tokens' embeddings are put in their places and the model reads the whole row.
`shared_prefix` is the fast way: what all rows of a prompt begin with, virtual tokens and words, is run once and its
keys and values are put before the rest of each row. Knows nothing of losses, labels' meaning or training.
"""

from typing import TypeAlias

import torch
from torch import Tensor, nn

from ptuning.backbone import Backbone, CausalBackbone
from ptuning.data import Batch, positions
from ptuning.errors import ModelError
from ptuning.placement import place
from ptuning.prefix import Prefix, RowPrompts

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
    if not backbone.shares_prefix or backbone.is_checkpointed:
        return False
    if isinstance(prompt, RowPrompts):
        return prompt.begins(batch)
    return isinstance(prompt, Tensor) and prompt.ndim == 2 and any(i < 0 for i in batch.shared_ids)


def require_path(backbone: Backbone, path: str) -> None:
    """Raises `ModelError` when the model cannot be run by that path."""
    if path == "shared_prefix" and (not backbone.shares_prefix or backbone.is_checkpointed):
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
        prefix = Prefix.of(backbone, prompt, batch.shared_ids)
        prompt = RowPrompts([prompt], [prefix], (0,) * len(batch.ids_BT))
    assert isinstance(prompt, RowPrompts)
    cache, prefix_mask_BP = prompt.spread(backbone)
    num_run_B1 = prefix_mask_BP.sum(dim=1, keepdim=True)
    is_rest_BT = (batch.mask_BT > 0) & (positions(batch.mask_BT) >= num_run_B1)
    # What is left of each row moves to the left: padding between prefix and text would use up a sliding window.
    order_BR = is_rest_BT.int().argsort(dim=1, descending=True, stable=True)[:, : int(is_rest_BT.sum(dim=1).max())]
    ids_BR, mask_BR, scored_BR = (each.gather(1, order_BR) for each in (batch.ids_BT, is_rest_BT, batch.scored_BT))
    return backbone.scored_logits(
        scored_BR,
        inputs_embeds=place(backbone, prompt.embeddings, ids_BR),
        attention_mask=torch.cat([prefix_mask_BP, mask_BR.long()], dim=1),
        position_ids=num_run_B1 + positions(mask_BR.long()),
        past_key_values=cache,
        use_cache=True,
    )


def embeddings_of(prompt: Prompt, backbone: Backbone, batch: Batch) -> Tensor:
    """The prompt's embeddings for the batch: `[P, H]`, or `[B, P, H]` with one prompt a row."""
    if isinstance(prompt, Tensor):
        return prompt
    if isinstance(prompt, RowPrompts):
        return prompt.embeddings
    return prompt(backbone.embed(batch.ids_BT.clamp(min=0)), batch.text_BT)
