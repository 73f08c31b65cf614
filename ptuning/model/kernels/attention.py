"""Attention with a prefix that all rows share; over short rows on CPUs as plain matrix products.

torch's own kernel was measured with 9 heads of width 64, forward and backward together. In bfloat16 it took 1.3 to 4.2
times as long for 187 to 768 keys, and as long for 896. In float32 it took 1.1 to 1.5 times as long for 187 to 256 keys,
and 0.6 times for 1,024. Knows nothing of models.

Shapes: B rows, N query heads, M key-value heads (N is a multiple of M), T queries, S keys, D the width of a head.
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

FILLED_TO = 32  # keys: bfloat16 softmax took up to 2.8 times as long if their number is not a multiple of this
_ALIGNED_TO = 16  # keys: torch copies a mask whose rows do not begin at such a number of elements
_WIDEST_SHARED_HEAD = 256  # elements: torch's fast kernels on GPUs take no wider one
_MASKS = threading.local()  # the latest mask of this thread
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
    options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
    if query.ndim == 4 and not enable_gqa and query.shape[1] != key.shape[1]:
        return _grouped(query, key, value, attn_mask, options)
    return _by_torch(query, key, value, attn_mask, enable_gqa=enable_gqa, **options)


def _grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
    """Torch's attention where query heads share key-value heads; a GPU reads shared keys and values once.

    torch's fast kernels share them only without a mask, in 16 bits and for heads that are not too wide.
    """
    is_narrow = key.shape[-1] == value.shape[-1] <= _WIDEST_SHARED_HEAD
    if query.device.type != "cpu" and mask is None and query.dtype.itemsize == 2 and is_narrow:
        return _by_torch(query, key, value, None, enable_gqa=True, **options)
    if query.device.type != "cpu" and mask is not None and mask.ndim == 4 and mask.shape[1] == 1:
        return heads_end_to_end(query, key, value, mask, options)
    key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for each in (key, value))
    return _by_torch(query, key, value, mask, **options)


def heads_end_to_end(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, options: dict[str, Any]) -> Tensor:
    """Torch's attention with query heads that share keys as one head, end to end; the mask is `[B, 1, T, S]`."""
    num_groups, num_queries = query.shape[1] // key.shape[1], query.shape[2]
    query = rearrange(query, "b (m g) t d -> b m (g t) d", g=num_groups)
    attended = _by_torch(query, key, value, _mask_of_groups(mask, num_queries, num_groups), **options)
    return rearrange(attended, "b m (g t) d -> b (m g) t d", t=num_queries)


def _mask_of_groups(mask: Tensor, num_queries: int, num_groups: int) -> Tensor:
    """The mask once for each head of a group, end to end; the layers of a pass, which share the mask, share it too."""
    known: tuple[Tensor, int, Tensor] | None = getattr(_MASKS, "latest", None)
    if known is None or known[0] is not mask or known[1] != num_groups:
        repeated = mask.expand(-1, -1, num_queries, -1).repeat(1, 1, num_groups, 1)
        known = _MASKS.latest = (mask, num_groups, repeated)
    return known[2]


def forget_mask() -> None:
    """Lets go of the latest mask of this thread, when the pass that it belongs to has ended."""
    _MASKS.latest = None


def _by_torch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
    with without_cudnn() if query.device.type == "cuda" else nullcontext():
        return functional.scaled_dot_product_attention(query, key, value, mask, **options)


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
    """The number of masked keys to add: on CPUs so that softmax is fast in bfloat16, on GPUs to align the mask."""
    if device.type != "cpu":
        return -num_keys % _ALIGNED_TO
    return -num_keys % FILLED_TO if dtype == torch.bfloat16 else 0


_CUDNN = threading.Lock()
_passes_without_cudnn, _is_cudnn_chosen = 0, True


@contextmanager
def without_cudnn() -> Iterator[None]:
    """A context in which torch does not choose cuDNN's attention, which makes a plan for every new shape.

    torch keeps this setting per process: it is set back when the last thread leaves.
    """
    global _passes_without_cudnn, _is_cudnn_chosen
    with _CUDNN:
        if not _passes_without_cudnn:
            _is_cudnn_chosen = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(False)
        _passes_without_cudnn += 1
    try:
        yield
    finally:
        with _CUDNN:
            _passes_without_cudnn -= 1
            if not _passes_without_cudnn:
                torch.backends.cuda.enable_cudnn_sdp(_is_cudnn_chosen)


@dataclass(frozen=True)
class JointPrefix:
    """A prefix at the start of the first row, whose keys and values are put before those of every row.

    Masks must have columns for it.
    """

    num_tokens: int
    """The number of leading tokens of the first row that make up the prefix."""
    num_empty: int = 0
    """The number of zero keys and values before the prefix."""

    def before(self, *states: Tensor) -> tuple[Tensor, ...]:
        """Keys and values, `[L, M, W, D]` each, with the prefix's put before each row's: `[L, M, S, D]`."""
        joint: tuple[Tensor, ...] = _Joint.apply(self.num_tokens, self.num_empty, *states)
        return joint


def _is_short(query: Tensor, key: Tensor, mask: Tensor) -> bool:
    """Whether `attend` accepts the tensors and is faster."""
    is_for_all = mask.ndim < 3 or mask.shape[-3] == 1
    num_scores = query.shape[:-1].numel() * key.shape[-2]
    is_short = key.shape[-2] <= _MAX_KEYS.get(query.dtype, 0) and num_scores <= _MAX_SCORES
    return is_short and not mask.requires_grad and (is_for_all or query.shape[1] == key.shape[1])


class _Joint(torch.autograd.Function):
    """`JointPrefix.before`; autograd would keep a node for each slice and copy, and add up their zeros."""

    @staticmethod
    def forward(ctx: Any, num_tokens: int, num_empty: int, *states: Tensor) -> tuple[Tensor, ...]:
        ctx.num_tokens, ctx.num_empty = num_tokens, num_empty
        joint = []
        for each in states:
            prefix = each[:1].narrow(2, 0, num_tokens).expand(len(each), -1, -1, -1)
            empty = [each.new_zeros(*each.shape[:2], num_empty, each.shape[3])] if num_empty else []
            joint.append(torch.cat([*empty, prefix, each], dim=2))
        return tuple(joint)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        start, found = ctx.num_empty + ctx.num_tokens, []
        for grad in grads:
            own = grad.narrow(2, start, grad.shape[2] - start).clone()
            own[0].narrow(1, 0, ctx.num_tokens).add_(grad.narrow(2, ctx.num_empty, ctx.num_tokens).sum(dim=0))
            found.append(own)
        return None, None, *found


class _Attend(torch.autograd.Function):
    """Keeps only the probabilities and works in place; autograd would keep the attention scores too.

    Query heads that share keys are put end to end, so each key head takes one product.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        batch, num_heads, num_queries, _ = query.shape
        num_keys = key.shape[2]
        ctx.shape, ctx.key_shape, ctx.value_shape, ctx.scale = query.shape, key.shape, value.shape, scale
        num_groups, width = batch * key.shape[1], query.shape[3]
        query = query.reshape(num_groups, -1, width)  # heads that share keys end to end
        key, value = key.reshape(num_groups, num_keys, width), value.reshape(num_groups, num_keys, value.shape[3])
        scores = torch.bmm(query, key.mT)
        by_head = scores.view(batch, ctx.key_shape[1], -1, num_queries, num_keys)
        mask = mask.unsqueeze(-3) if mask.ndim > 2 else mask
        if mask.dtype == torch.bool:
            by_head.mul_(scale).masked_fill_(~mask, torch.finfo(scores.dtype).min)
        else:
            torch.add(mask, by_head, alpha=scale, out=by_head)
        probabilities = scores.softmax(dim=-1)
        ctx.save_for_backward(query, key, value, probabilities)
        return torch.bmm(probabilities, value).view(batch, num_heads, num_queries, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, probabilities = ctx.saved_tensors
        grad = grads[0].reshape(len(query), -1, value.shape[2])
        by_score = _softmax_backward(torch.bmm(grad, value.mT), probabilities)
        by_score.mul_(ctx.scale)
        by_query = torch.bmm(by_score, key).view(ctx.shape)
        by_key = torch.bmm(by_score.mT, query).view(ctx.key_shape)
        by_value = torch.bmm(probabilities.mT, grad).view(ctx.value_shape)
        return by_query, by_key, by_value, None, None


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
