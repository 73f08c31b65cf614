"""Attention of short rows on CPUs, as plain matrix products; and behind keys that all rows share.

torch's own kernel took 1.7 to 3.9 times as long in bfloat16, forward and backward together, for 86 to 1,046 keys, and
1.1 to 1.3 times in float32 for 86 to 166; at 278 keys it was the faster one there. Knows nothing of models.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_LONGEST = {torch.bfloat16: 1024, torch.float32: 200}  # keys, up to which this is used
_MOST_SCORES = 2**24  # of a layer: they are kept for the backward pass, which torch's own kernel does without


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention`: its arguments, shapes and gradients; as products where that is the faster way."""
    is_plain = not dropout_p and not is_causal and not enable_gqa and query.device.type == "cpu"
    num_scores = query.shape[:-1].numel() * key.shape[-2]
    is_short = key.shape[-2] <= _LONGEST.get(query.dtype, 0) and num_scores <= _MOST_SCORES
    if is_plain and is_short and attn_mask is not None and not attn_mask.requires_grad:
        return attend(query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(scale x query key^T + mask) value, shapes and gradients as in `scaled_dot_product_attention`.

    A query that sees no key, as padding may, gets the mean of the values instead of 0, where the mask holds the least
    finite number, as transformers' masks do.

    Args:
        query: `[..., T, D]`.
        key: `[..., S, D]`.
        value: `[..., S, D]`.
        mask: What is added to the scores, or True where a key is seen; broadcasts to `[..., T, S]`, without gradient.
        scale: What the scores are multiplied by.
    """
    attended: Tensor = _Attend.apply(query, key, value, mask, scale)
    return attended


class SharedHead(TorchFunctionMode):
    """While it is on, the first row's leading keys and values stand before those of every row.

    So what rows begin with, laid in front of the first one, is seen by all. Masks must have the columns for it.

    Args:
        size: How many there are.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            query, key, value, *others = args
            args = (query, *(_behind_head(each, self._size) for each in (key, value)), *others)
        return func(*args, **(kwargs or {}))


def _behind_head(states: Tensor, size: int) -> Tensor:
    """Keys or values `[L, heads, W, D]` with the first row's leading ones before each row's."""
    return torch.cat([states[:1, :, :size].expand(len(states), -1, -1, -1), states], dim=2)


class _Attend(torch.autograd.Function):
    """Keeps the probabilities alone, and works in place: autograd would keep the scores too."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        scores = (query @ key.mT).mul_(scale)
        if mask.dtype == torch.bool:
            scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        else:
            scores.add_(mask)
        probabilities = scores.softmax(dim=-1)
        ctx.save_for_backward(query, key, value, probabilities)
        ctx.scale = scale
        return probabilities @ value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, probabilities = ctx.saved_tensors
        (grad,) = grads
        by_probability = grad @ value.mT
        by_score = torch._softmax_backward_data(by_probability, probabilities, -1, probabilities.dtype)
        by_score.mul_(ctx.scale)
        return by_score @ key, by_score.mT @ query, probabilities.mT @ grad, None, None
