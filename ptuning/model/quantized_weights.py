"""Frozen weights of linear layers in 8 or 4 bits, as tensors that take part in products.

A product makes the weight whole for as long as it takes, and again in the backward pass: torch's own graph would keep
the whole weight of every layer until then. Only inputs get gradients. Needs torchao. Knows nothing of models.
"""

import math
from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional
from torchao.quantization import Int8Tensor
from torchao.utils import TorchAOBaseTensor

_GROUP = 32  # weights of a row that share a scale and a minimum
_SMALLEST_GROUP = 8


class Int8Weight(Int8Tensor):
    """torchao's 8-bit weight: one scale per row."""

    @classmethod
    def of(cls, weight: Int8Tensor) -> Self:
        """The same weight."""
        names, others = weight.__tensor_flatten__()
        return cls.__tensor_unflatten__({name: getattr(weight, name) for name in names}, others, None, None)

    def whole(self) -> Tensor:
        """The weight as ordinary numbers, `[O, I]`."""
        return self.dequantize()

    def product(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """`torch.nn.functional.linear`; the scales are applied to the product, which is smaller than the weight."""
        product = functional.linear(input, self.qdata.to(input.dtype)) * self.scale.flatten().to(input.dtype)
        return product if bias is None else product + bias


class Int4Weight(TorchAOBaseTensor):
    """A weight whose rows are cut into groups of 32 numbers, each one of 16 evenly spaced values.

    A group keeps its lowest value and the step between values, both in bfloat16: 5 bits per number in all. The groups
    are shorter where 32 does not divide the row.
    """

    tensor_data_names = ["packed_OGK", "step_OG1", "lowest_OG1"]  # noqa: RUF012 - as torchao wants them
    tensor_attribute_names = ["dtype"]  # noqa: RUF012

    def __new__(cls, packed_OGK: Tensor, step_OG1: Tensor, lowest_OG1: Tensor, dtype: torch.dtype) -> Self:
        """Makes the tensor; each byte of `packed_OGK` holds a number of the group's first half and one of its second.

        Args:
            packed_OGK: `[O, G, 16]` uint8.
            step_OG1: `[O, G, 1]`.
            lowest_OG1: `[O, G, 1]`.
            dtype: The precision of the whole weight.
        """
        num_rows, num_groups, num_bytes = packed_OGK.shape
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls, (num_rows, num_groups * num_bytes * 2), dtype=dtype, device=packed_OGK.device, requires_grad=False
        )
        made.packed_OGK, made.step_OG1, made.lowest_OG1 = packed_OGK, step_OG1, lowest_OG1
        return made

    def __init__(self, packed_OGK: Tensor, step_OG1: Tensor, lowest_OG1: Tensor, dtype: torch.dtype) -> None:
        super().__init__()

    @classmethod
    def fits(cls, weight: Tensor) -> bool:
        """Whether a weight `[O, I]` can be cut into groups."""
        return math.gcd(weight.shape[1], _GROUP) >= _SMALLEST_GROUP

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """The nearest 4-bit weight to a whole one, `[O, I]`."""
        groups_OGK = rearrange(weight.detach().float(), "o (g k) -> o g k", k=math.gcd(weight.shape[1], _GROUP))
        lowest_OG1 = groups_OGK.amin(dim=2, keepdim=True).bfloat16()
        step_OG1 = ((groups_OGK.amax(dim=2, keepdim=True) - lowest_OG1) / 15).bfloat16()
        codes_OGK = (groups_OGK - lowest_OG1) / step_OG1.float().clamp(min=torch.finfo(torch.bfloat16).tiny)
        low_OGK, high_OGK = codes_OGK.round().clamp(0, 15).to(torch.uint8).chunk(2, dim=2)
        return cls(low_OGK | (high_OGK << 4), step_OG1, lowest_OG1, weight.dtype)

    def whole(self) -> Tensor:
        """The weight as ordinary numbers, `[O, I]`."""
        codes_OGK = torch.cat([self.packed_OGK & 15, self.packed_OGK >> 4], dim=2)
        numbers_OGK = codes_OGK.to(self.dtype).mul_(self.step_OG1).add_(self.lowest_OG1)
        return rearrange(numbers_OGK, "o g k -> o (g k)")

    def product(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """`torch.nn.functional.linear`."""
        return functional.linear(input, self.whole(), bias)


class _Product(torch.autograd.Function):
    """input weight^T + bias; only the input gets a gradient, and nothing but the small weight is kept for it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Int8Weight | Int4Weight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight  # frozen, and kept by its layer anyhow
        return weight.product(input, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] @ ctx.weight.whole().to(grads[0].dtype), None, None


def _linear(func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Tensor:
    def of(input: Tensor, weight: Int8Weight | Int4Weight, bias: Tensor | None = None) -> Tensor:
        product: Tensor = _Product.apply(input, weight, bias)
        return product

    return of(*args, **(kwargs or {}))


for _kind in (Int8Weight, Int4Weight):
    _kind.implements_torch_function(functional.linear)(_linear)
