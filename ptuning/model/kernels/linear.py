"""Multiplies with frozen float32 weights on CPUs by oneDNN.

torch uses MKL for float32. oneDNN, which torch includes, was 1.06 to 1.15 times as fast, forward and backward, for 256
to 2,000 tokens with SmolLM2-135M's layers on a Xeon with AVX-512, and 1.8 times as fast for 32 tokens with its head. In
bfloat16 torch uses oneDNN already. Knows nothing of models.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_MIN_ROWS = 8  # oneDNN was faster from this number of rows
_PLAIN: tuple[Any, ...] = ("none", [], "")  # nothing is computed behind the product


@functools.cache
def _product() -> Callable[..., Tensor] | None:
    """Torch's private oneDNN operator; None unless it exists and returns what torch's public function returns."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    product: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
    input, weight, bias = torch.arange(6.0).reshape(2, 3), torch.arange(12.0).reshape(4, 3), torch.arange(4.0)
    try:
        found = product(input, weight, bias, *_PLAIN)
    except (RuntimeError, TypeError):  # its arguments differ in this version of torch
        return None
    return product if torch.equal(found, functional.linear(input, weight, bias)) else None


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` with the same arguments, shapes and gradients; by oneDNN if that is faster."""
    is_float32 = weight.dtype == input.dtype == torch.float32 and weight.is_cpu and input.is_cpu
    is_frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    is_plain = is_float32 and is_frozen and type(weight) in (Tensor, nn.Parameter)
    if not is_plain or input.ndim < 2 or input.numel() < _MIN_ROWS * input.shape[-1] or _product() is None:
        return functional.linear(input, weight, bias)
    product: Tensor = _Product.apply(input, weight, bias)
    return product


class _Product(torch.autograd.Function):
    """input weight^T + bias; only the input gets a gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        ctx.weight = weight  # frozen, so nothing has to watch for changes of it
        return _product()(input, weight, bias, *_PLAIN)  # type: ignore[misc]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _product()(grads[0], ctx.weight.t(), None, *_PLAIN), None, None  # type: ignore[misc]
