"""Attention of short rows on CPUs, as plain matrix products; and behind keys that all rows share.

torch's own kernel, forward and backward together with 9 heads of width 64, took 1.3 to 4.2 times as long in bfloat16
for 187 to 768 keys and as long for 896; in float32 1.1 to 1.5 times for 187 to 256 keys, and 0.6 for 1,024. Knows
nothing of models.

Shapes: B rows, N heads of queries and M of keys and values, N a multiple of M; T queries, S keys, D a head's width.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

FILLED_TO = 32  # keys: softmax in bfloat16 took up to 2.8 times as long for numbers that are no multiple of it
_LONGEST = {torch.bfloat16: 1024, torch.float32: 256}  # keys, up to which this is used
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
    """`scaled_dot_product_attention`: its arguments, shapes and gradients; as products where that is the faster way.

    Several heads of queries may share one of keys and values without `enable_gqa`.
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

    A query that sees no key, as padding may, gets the mean of the values instead of 0, where the mask holds the least
    finite number, as transformers' masks do.

    Args:
        query: `[B, N, T, D]`.
        key: `[B, M, S, D]`; each of its heads is that of N / M neighbouring heads of queries.
        value: `[B, M, S, D]`.
        mask: What is added to the scores, or True where a key is seen; broadcasts to `[B, N, T, S]`, and is the same
            for all heads where they share keys; without gradient.
        scale: What the scores are multiplied by.
    """
    attended: Tensor = _Attend.apply(query, key, value, mask, scale)
    return attended


def num_filling(num_keys: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many keys that nothing sees make the number one that softmax is fast for: in bfloat16 on CPUs."""
    return -num_keys % FILLED_TO if dtype == torch.bfloat16 and device.type == "cpu" else 0


@dataclass(frozen=True)
class JointPrefix:
    """What rows begin with, laid in front of the first one, whose keys and values stand before those of every row.

    Masks must have the columns for it.
    """

    num_tokens: int
    """How many leading tokens of the first row it is."""
    num_empty: int = 0
    """Keys and values of 0 that stand before them."""

    def before(self, states: Tensor) -> Tensor:
        """Keys or values `[L, M, W, D]` with the prefix's before each row's."""
        prefix = functional.pad(states[:1, :, : self.num_tokens], (0, 0, self.num_empty, 0))
        return torch.cat([prefix.expand(len(states), -1, -1, -1), states], dim=2)


def _is_short(query: Tensor, key: Tensor, mask: Tensor) -> bool:
    """Whether `attend` takes them, and is the faster way."""
    is_for_all = mask.ndim < 3 or mask.shape[-3] == 1
    num_scores = query.shape[:-1].numel() * key.shape[-2]
    is_short = key.shape[-2] <= _LONGEST.get(query.dtype, 0) and num_scores <= _MOST_SCORES
    return is_short and not mask.requires_grad and (is_for_all or query.shape[1] == key.shape[1])


class _Attend(torch.autograd.Function):
    """Keeps the probabilities alone, and works in place: autograd would keep the scores too.

    Heads of queries that share keys are laid end to end, so that each head of keys is in one product.
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
    """The gradient of softmax over the last dimension, by torch's own operator where it is as we know it."""
    if _has_softmax_backward():
        return torch._softmax_backward_data(grad, probabilities, -1, probabilities.dtype)
    return _plain_softmax_backward(grad, probabilities)


def _plain_softmax_backward(grad: Tensor, probabilities: Tensor) -> Tensor:
    weighted = grad.float() * probabilities.float()
    return (weighted - probabilities.float() * weighted.sum(dim=-1, keepdim=True)).to(probabilities.dtype)


@functools.cache
def _has_softmax_backward() -> bool:
    """Whether torch's private operator is there and gives what it should."""
    probabilities, grad = torch.tensor([[0.25, 0.75]]), torch.tensor([[1.0, 0.0]])
    try:
        found = torch._softmax_backward_data(grad, probabilities, -1, probabilities.dtype)
    except (AttributeError, RuntimeError, TypeError):  # it is another one in this version of torch
        return False
    return torch.allclose(found, _plain_softmax_backward(grad, probabilities))
