"""Puts the virtual tokens' embeddings in their places in the text.

Knows nothing of caches, batches or where the prompt comes from.
"""

from typing import Any

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
    placed_BTH: Tensor = _Placed.apply(prompt.to(embeddings_BTH), embeddings_BTH, ids_BT)
    return placed_BTH


class _Placed(torch.autograd.Function):
    """The prompt's rows where ids are negative, and the embeddings elsewhere; only the prompt gets a gradient.

    Its gradient is one product. That of an index would add all tokens' one by one, most of which are zeros.
    """

    @staticmethod
    def forward(ctx: Any, prompt: Tensor, embeddings_BTH: Tensor, ids_BT: Tensor) -> Tensor:
        ctx.save_for_backward(ids_BT)
        ctx.prompt_shape = prompt.shape
        index_BT = (-1 - ids_BT).clamp(min=0)
        if prompt.ndim == 2:
            prompt_BTH = prompt[index_BT]
        else:
            rows_B1 = rearrange(torch.arange(len(ids_BT), device=ids_BT.device), "b -> b 1")
            prompt_BTH = prompt[rows_B1, index_BT]
        is_virtual_BTH = repeat(ids_BT < 0, "b t -> b t h", h=embeddings_BTH.shape[2])
        return torch.where(is_virtual_BTH, prompt_BTH, embeddings_BTH)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ((grad_BTH,), (ids_BT,)) = grads, ctx.saved_tensors
        virtual_P = -1 - torch.arange(ctx.prompt_shape[-2], device=ids_BT.device)
        is_there_BTP = (ids_BT[..., None] == virtual_P).to(grad_BTH.dtype)
        if len(ctx.prompt_shape) == 2:
            return is_there_BTP.flatten(0, 1).mT @ grad_BTH.flatten(0, 1), None, None
        return is_there_BTP.mT @ grad_BTH, None, None
