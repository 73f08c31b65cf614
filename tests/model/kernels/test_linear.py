"""Products by oneDNN equal torch's own, gradients included, and step aside where they should."""

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ptuning.model.kernels import linear as module
from ptuning.model.kernels.linear import linear
from ptuning.model.kernels.switch import fast_kernels

pytestmark = pytest.mark.skipif(module._product() is None, reason="torch was built without oneDNN")


def tensors(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, bias and the gradient of what comes out."""
    chance = torch.Generator().manual_seed(0)
    shapes = [shape, (5, shape[-1]), (5,), (*shape[:-1], 5)]
    made = [torch.randn(each, generator=chance).to(dtype) for each in shapes]
    return made[0], made[1], made[2], made[3]


def measured(way: Any, input: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = input.clone().requires_grad_()
    product = way(leaf, weight, bias)
    product.backward(grad)
    assert leaf.grad is not None
    return product.detach(), leaf.grad


@pytest.mark.parametrize("shape", [(8, 3), (2, 4, 3), (2, 3, 4, 16)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_equal_torchs_own(shape: tuple[int, ...], has_bias: bool) -> None:
    input, weight, bias, grad = tensors(shape)
    own = bias if has_bias else None
    ours, theirs = (measured(way, input, weight, own, grad) for way in (linear, functional.linear))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_parts_of_larger_tensors_are_read_right() -> None:
    input, weight, bias, _ = tensors((2, 8, 6))
    for given in (input[:, ::2], input.transpose(0, 1), input[..., :3]):
        own = weight[:, :3] if given.shape[-1] == 3 else weight
        expected = functional.linear(given, own, bias)
        torch.testing.assert_close(linear(given, own, bias), expected, rtol=1e-5, atol=1e-5)


class Wrapped(nn.Parameter):
    """A weight that says for itself how it is multiplied, such as a quantized one."""


@pytest.mark.parametrize(
    ("changed", "is_ours"),
    [
        ({}, True),
        ({"weight": nn.Parameter(torch.ones(5, 3), requires_grad=False)}, True),
        ({"weight": nn.Parameter(torch.ones(5, 3))}, False),
        ({"weight": Wrapped(torch.ones(5, 3), requires_grad=False)}, False),
        ({"bias": torch.ones(5, requires_grad=True)}, False),
        ({"input": torch.ones(7, 3)}, False),
        ({"input": torch.ones(3)}, False),
        ({"input": torch.ones(0, 3)}, False),
        (dict(zip(("input", "weight", "bias"), tensors((8, 3), torch.bfloat16), strict=False)), False),
        (dict(zip(("input", "weight", "bias"), tensors((8, 3), torch.float64), strict=False)), False),
    ],
)
def test_it_acts_where_it_is_faster(changed: dict[str, Tensor], is_ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    product = module._product
    monkeypatch.setattr(module, "_product", lambda *each: calls.append(len(each)) or product(*each))
    given = dict(zip(("input", "weight", "bias"), tensors((8, 3)), strict=False)) | changed
    functional.linear(**given)
    assert not calls
    with fast_kernels():
        found = functional.linear(**given)
    assert bool(calls) == is_ours
    torch.testing.assert_close(found, functional.linear(**given))


def test_without_onednn_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    input, weight, bias, _ = tensors((8, 3))
    expected = functional.linear(input, weight, bias)
    monkeypatch.setattr(module, "_product", lambda: None)
    with fast_kernels():
        assert torch.equal(functional.linear(input, weight, bias), expected)


@pytest.mark.parametrize("changed", ["missing", "other arguments", "other numbers"])
def test_another_private_operator_is_not_used(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    input, weight, bias, _ = tensors((8, 3))
    expected = functional.linear(input, weight, bias)

    def taking_less(input: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(input, weight)

    def giving_others(input: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> Tensor:
        return functional.linear(input, weight, bias) + 1

    ways = {"missing": {}, "other arguments": {"_linear_pointwise": SimpleNamespace(default=taking_less)}}
    ways["other numbers"] = {"_linear_pointwise": SimpleNamespace(default=giving_others)}
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**ways[changed]))
    monkeypatch.setattr(module, "_product", functools.cache(module._product.__wrapped__))
    with fast_kernels():
        assert torch.equal(functional.linear(input, weight, bias), expected)
