"""Label logits of a batch, two ways to the same numbers.

`splice` is the definition: the virtual tokens' embeddings are put in their places and the model reads the whole row.
`shared_prefix` is the fast way: leading virtual tokens, equal in all rows of a causal model, are run once and their
keys and values repeated for the rows. Knows nothing of losses, labels' meaning or training.
"""

from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from ptuning.backbone import Backbone
from ptuning.data import Batch
from ptuning.errors import ModelError


def label_logits(backbone: Backbone, prompt_PH: Tensor, batch: Batch, path: str = "auto") -> Tensor:
    """Logits at the batch's scored positions.

    Args:
        backbone: The frozen model.
        prompt_PH: The virtual tokens' embeddings, `[P, H]`.
        batch: Rows on the backbone's device.
        path: splice, shared_prefix, or auto: shared_prefix where the model's cache can be shared.

    Returns:
        `[N, V]` fp32, in row order.
    """
    if path == "splice" or not batch.num_shared or (path == "auto" and not backbone.shares_prefix):
        return splice(backbone, prompt_PH, batch)
    return shared_prefix(backbone, prompt_PH, batch)


def require_path(backbone: Backbone, path: str) -> None:
    """Raises `ModelError` when the model cannot be run by that path."""
    if path == "shared_prefix" and not backbone.shares_prefix:
        raise ModelError(
            f"forward: shared_prefix with {backbone.name}",
            "a model whose layers are all attention",
            "Use forward: auto",
        )


def splice(backbone: Backbone, prompt_PH: Tensor, batch: Batch) -> Tensor:
    """The reference: every row whole, virtual tokens in their places. Shapes as in `label_logits`."""
    output = backbone.run(
        inputs_embeds=place(backbone, prompt_PH, batch.ids_BT),
        attention_mask=batch.mask_BT,
        position_ids=positions(batch.mask_BT),
        use_cache=False,
        logits_to_keep=batch.scored_BT,
    )
    return output.logits.float()


def shared_prefix(backbone: Backbone, prompt_PH: Tensor, batch: Batch) -> Tensor:
    """The leading virtual tokens once at batch 1, then the rest of the rows. Shapes as in `label_logits`."""
    require_path(backbone, "shared_prefix")
    num_rows, num_shared = len(batch.ids_BT), batch.num_shared
    cache = prefix_cache(backbone, prompt_PH[:num_shared])
    cache.batch_repeat_interleave(num_rows)
    is_rest_BT = (batch.ids_BT >= 0) | (batch.ids_BT < -num_shared)
    rest = [
        rearrange(tensor[is_rest_BT], "(b r) -> b r", b=num_rows)
        for tensor in (batch.ids_BT, batch.mask_BT, batch.scored_BT)
    ]
    # Padding goes to the right: between the prefix and the text it would use up a sliding window.
    order_BR = rest[1].argsort(dim=1, descending=True, stable=True)
    ids_BR, mask_BR, scored_BR = (tensor.gather(1, order_BR) for tensor in rest)
    output = backbone.run(
        inputs_embeds=place(backbone, prompt_PH, ids_BR),
        attention_mask=torch.cat([mask_BR.new_ones(num_rows, num_shared), mask_BR], dim=1),
        position_ids=num_shared + positions(mask_BR),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=scored_BR,
    )
    return output.logits.float()


def prefix_cache(backbone: Backbone, prefix_PH: Tensor) -> Any:
    """The keys and values of a prefix, run once at batch 1 with its gradient."""
    cache = backbone.new_cache()
    backbone.run(
        inputs_embeds=prefix_PH.to(backbone.device, backbone.dtype)[None],
        position_ids=torch.arange(len(prefix_PH), device=backbone.device)[None],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return cache


def place(backbone: Backbone, prompt_PH: Tensor, ids_BT: Tensor) -> Tensor:
    """Input embeddings `[B, T, H]` of ids, virtual tokens (negative ids) taken from the prompt."""
    embeddings_BTH = backbone.embed(ids_BT.clamp(min=0))
    if not len(prompt_PH):
        return embeddings_BTH
    index_BT = (-1 - ids_BT).clamp(min=0)
    prompt_BTH = prompt_PH.to(embeddings_BTH)[index_BT]
    is_virtual_BTH = repeat(ids_BT < 0, "b t -> b t h", h=prompt_PH.shape[1])
    return torch.where(is_virtual_BTH, prompt_BTH, embeddings_BTH)


def positions(mask_BT: Tensor) -> Tensor:
    """Position of each token in its row, counted from 0 whatever the padding: `[B, T]`."""
    return (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
