"""Attention over short rows on CPUs as plain matrix products, and attention with a prefix that all rows share.

torch's own kernel was measured with 9 heads of width 64, forward and backward together. In bfloat16 it took 1.3 to 4.2
times as long for 187 to 768 keys, and as long for 896. In float32 it took 1.1 to 1.5 times as long for 187 to 256 keys,
and 0.6 times for 1,024. Knows nothing of models.

Shapes: B rows, N query heads, M key-value heads (N is a multiple of M), T queries, S keys, D the width of a head.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

FILLED_TO = 32  # keys: bfloat16 softmax took up to 2.8 times as long if their number is not a multiple of this
_MAX_KEYS = {torch.bfloat16: 1024, torch.float32: 256}  # with more keys, torch's own kernel is used
_MAX_SCORES = 2**24  # per layer: they are kept for the backward pass, unlike in torch's own kernel


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
    """`scaled_dot_product_attention` with the same arguments, shapes and gradients; as matrix products if faster.

    Query heads may share key-value heads without `enable_gqa`.
    """
    is_plain = not dropout_p and not is_causal and not enable_gqa and query.ndim == 4 and query.device.type == "cpu"
    if is_plain and attn_mask is not None and _is_short(query, key, attn_mask):
        return attend(query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale)
    if query.ndim == 4 and not enable_gqa and query.shape[1] != key.shape[1]:
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(scale x query key^T + mask) value: `[B, N, T, D]`.

    A query that sees no key, as padding may, gets the mean of the values instead of 0 if the mask holds the lowest
    finite number, as transformers' masks do.

    Args:
        query: `[B, N, T, D]`.
        key: `[B, M, S, D]`; each head serves N / M neighbouring query heads.
        value: `[B, M, S, D]`.
        mask: Added to the attention scores, or True where a key is seen. It broadcasts to `[B, N, T, S]`, is the same
            for all query heads that share keys, and has no gradient.
        scale: The factor for the attention scores.
    """
    attended: Tensor = _Attend.apply(query, key, value, mask, scale)
    return attended


def num_filling(num_keys: int, dtype: torch.dtype, device: torch.device) -> int:
    """The number of masked keys to add so that softmax is fast; 0 except for bfloat16 on CPUs."""
    return -num_keys % FILLED_TO if dtype == torch.bfloat16 and device.type == "cpu" else 0


@dataclass(frozen=True)
class JointPrefix:
    """A prefix at the start of the first row, whose keys and values are put before those of every row.

    Masks must have columns for it.
    """

    num_tokens: int
    """The number of leading tokens of the first row that make up the prefix."""
    num_empty: int = 0
    """The number of zero keys and values before the prefix."""

    def before(self, states: Tensor) -> Tensor:
        """Keys or values `[L, M, W, D]`, with the prefix's put before each row's: `[L, M, S, D]`."""
        prefix = functional.pad(states[:1, :, : self.num_tokens], (0, 0, self.num_empty, 0))
        return torch.cat([prefix.expand(len(states), -1, -1, -1), states], dim=2)


def _is_short(query: Tensor, key: Tensor, mask: Tensor) -> bool:
    """Whether `attend` accepts the tensors and is faster."""
    is_for_all = mask.ndim < 3 or mask.shape[-3] == 1
    num_scores = query.shape[:-1].numel() * key.shape[-2]
    is_short = key.shape[-2] <= _MAX_KEYS.get(query.dtype, 0) and num_scores <= _MAX_SCORES
    return is_short and not mask.requires_grad and (is_for_all or query.shape[1] == key.shape[1])


class _Attend(torch.autograd.Function):
    """Keeps only the probabilities and works in place; autograd would keep the attention scores too.

    Query heads that share keys are put end to end, so each key head takes one product.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        num_queries = query.shape[2]
        query = rearrange(query, "b (m g) t d -> b m (g t) d", m=key.shape[1])
        scores = query @ key.mT
        by_head = rearrange(scores, "b m (g t) s -> b m g t s", t=num_queries)
        mask = mask.unsqueeze(-3) if mask.ndim > 2 else mask
        if mask.dtype == torch.bool:
            by_head.mul_(scale).masked_fill_(~mask, torch.finfo(scores.dtype).min)
        else:
            torch.add(mask, by_head, alpha=scale, out=by_head)
        probabilities = scores.softmax(dim=-1)
        ctx.save_for_backward(query, key, value, probabilities)
        ctx.scale, ctx.num_queries = scale, num_queries
        return rearrange(probabilities @ value, "b m (g t) d -> b (m g) t d", t=num_queries)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, probabilities = ctx.saved_tensors
        grad = rearrange(grads[0], "b (m g) t d -> b m (g t) d", m=key.shape[1])
        by_probability = grad @ value.mT
        by_score = _softmax_backward(by_probability, probabilities)
        by_score.mul_(ctx.scale)
        by_query = rearrange(by_score @ key, "b m (g t) d -> b (m g) t d", t=ctx.num_queries)
        return by_query, by_score.mT @ query, probabilities.mT @ grad, None, None


def _softmax_backward(grad: Tensor, probabilities: Tensor) -> Tensor:
    """The gradient of softmax over the last dimension, by torch's private operator if it works as expected."""
    if _has_softmax_backward():
        return torch._softmax_backward_data(grad, probabilities, -1, probabilities.dtype)
    return _plain_softmax_backward(grad, probabilities)


def _plain_softmax_backward(grad: Tensor, probabilities: Tensor) -> Tensor:
    weighted = grad.float() * probabilities.float()
    return (weighted - probabilities.float() * weighted.sum(dim=-1, keepdim=True)).to(probabilities.dtype)


@functools.cache
def _has_softmax_backward() -> bool:
    """Whether torch's private operator exists and returns the right gradient."""
    probabilities, grad = torch.tensor([[0.25, 0.75]]), torch.tensor([[1.0, 0.0]])
    try:
        found = torch._softmax_backward_data(grad, probabilities, -1, probabilities.dtype)
    except (AttributeError, RuntimeError, TypeError):  # it differs in this version of torch
        return False
    return torch.allclose(found, _plain_softmax_backward(grad, probabilities))
