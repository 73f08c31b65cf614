"""Attention as matrix products equals torch's own, gradients included, and steps aside where it should."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ptuning import attention
from ptuning.attention import attend
from ptuning.kernels import FastKernels


def inputs(dtype: torch.dtype, num_keys: int = 7) -> tuple[Tensor, ...]:
    """Query, key, value and the gradient of what comes out."""
    chance = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 5, 8), (2, 3, num_keys, 8), (2, 3, num_keys, 8), (2, 3, 5, 8)]
    return tuple(torch.randn(shape, generator=chance).to(dtype) for shape in shapes)


def masks(dtype: torch.dtype, num_keys: int = 7) -> dict[str, Tensor]:
    sees = torch.ones(5, num_keys, dtype=torch.bool).tril(num_keys - 5).expand(2, 1, 5, num_keys)
    added = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
    return {"seen": sees, "added": added}


def measured(attend_with: Any, *tensors: Tensor) -> list[Tensor]:
    query, key, value, grad = tensors
    leaves = [each.clone().requires_grad_() for each in (query, key, value)]
    attended = attend_with(*leaves)
    attended.backward(grad)
    return [attended.detach(), *(leaf.grad for leaf in leaves)]  # type: ignore[list-item]


@pytest.mark.parametrize("kind", ["seen", "added"])
def test_products_equal_torchs_own_attention(kind: str) -> None:
    mask, tensors = masks(torch.float64)[kind], inputs(torch.float64)
    ours = measured(lambda *each: attend(*each, mask, 0.3), *tensors)
    theirs = measured(lambda *each: functional.scaled_dot_product_attention(*each, mask, scale=0.3), *tensors)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_in_bfloat16_it_is_as_near_to_float32_as_torchs_own_kernel() -> None:
    tensors = inputs(torch.bfloat16)
    mask = masks(torch.bfloat16)["added"]
    plain = functional.scaled_dot_product_attention
    exact = measured(lambda *each: plain(*each, mask.float()), *(each.float() for each in tensors))
    kernel = measured(lambda *each: plain(*each, mask), *tensors)
    with FastKernels():
        ours = measured(lambda *each: plain(*each, mask), *tensors)
    for one, other, true in zip(ours, kernel, exact, strict=True):
        assert (one - true).norm() < 3 * (other - true).norm()


@pytest.mark.parametrize(
    ("dtype", "num_keys", "options", "is_ours"),
    [
        (torch.bfloat16, 7, {}, True),
        (torch.float32, 200, {}, True),
        (torch.float32, 201, {}, False),
        (torch.float64, 7, {}, False),
        (torch.bfloat16, 1025, {}, False),
        (torch.bfloat16, 7, {"dropout_p": 0.1}, False),
        (torch.bfloat16, 7, {"attn_mask": torch.zeros(5, 7, dtype=torch.bfloat16, requires_grad=True)}, False),
        (torch.bfloat16, 7, {"attn_mask": None, "is_causal": True}, False),
    ],
)
def test_it_acts_where_it_is_faster(
    dtype: torch.dtype, num_keys: int, options: dict[str, Any], is_ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(attention, "attend", lambda *each: calls.append(len(each)) or attend(*each))
    *tensors, _ = inputs(dtype, num_keys)
    with FastKernels():
        functional.scaled_dot_product_attention(*tensors, **{"attn_mask": masks(dtype, num_keys)["added"], **options})
    assert bool(calls) == is_ours
    calls.clear()
    functional.scaled_dot_product_attention(*tensors, masks(dtype, num_keys)["added"])
    assert not calls


@pytest.mark.parametrize("kind", ["seen", "added"])
def test_a_query_that_sees_nothing_spoils_nothing(kind: str) -> None:
    tensors = inputs(torch.float32)
    mask = {"seen": torch.zeros(5, 7, dtype=torch.bool), "added": torch.full((5, 7), torch.finfo(torch.float32).min)}[
        kind
    ]
    assert all(each.isfinite().all() for each in measured(lambda *each: attend(*each, mask, 0.3), *tensors))


def test_scores_that_take_much_memory_are_left_to_torchs_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "attend", pytest.fail)
    monkeypatch.setattr(attention, "_MOST_SCORES", 2 * 3 * 5 * 7 - 1)
    *tensors, _ = inputs(torch.bfloat16)
    with FastKernels():
        functional.scaled_dot_product_attention(*tensors, masks(torch.bfloat16)["added"])
