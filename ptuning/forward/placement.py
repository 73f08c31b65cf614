"""Puts the virtual tokens' embeddings in their places in the text.

Knows nothing of caches, batches or where the prompt comes from.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor

from ptuning.model import Backbone


def place(backbone: Backbone, prompt: Tensor, ids_BT: Tensor) -> Tensor:
    """Input embeddings `[B, T, H]` of ids; those of virtual tokens (negative ids) come from the row's prompt.

    Args:
        backbone: The frozen model.
        prompt: `[P, H]`, or `[B, P, H]` with one prompt per row.
        ids_BT: Token ids; virtual token i is -(i + 1).
    """
    embeddings_BTH = backbone.embed(ids_BT.clamp(min=0))
    if not prompt.shape[-2]:
        return embeddings_BTH
    index_BT = (-1 - ids_BT).clamp(min=0)
    if prompt.ndim == 2:
        prompt_BTH = prompt.to(embeddings_BTH)[index_BT]
    else:
        rows_B1 = rearrange(torch.arange(len(ids_BT), device=ids_BT.device), "b -> b 1")
        prompt_BTH = prompt.to(embeddings_BTH)[rows_B1, index_BT]
    is_virtual_BTH = repeat(ids_BT < 0, "b t -> b t h", h=embeddings_BTH.shape[2])
    return torch.where(is_virtual_BTH, prompt_BTH, embeddings_BTH)
