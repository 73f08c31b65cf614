"""Attention as matrix products equals torch's own, gradients included, and steps aside where it should."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ptuning.model.kernels import attention
from ptuning.model.kernels.attention import JointPrefix, attend, num_filling
from ptuning.model.kernels.switch import fast_kernels


def inputs(dtype: torch.dtype, num_keys: int = 7, num_heads: int = 6) -> tuple[Tensor, ...]:
    """Query of six heads, key and value of so many, and the gradient of what comes out."""
    chance = torch.Generator().manual_seed(0)
    shapes = [(2, 6, 5, 8), (2, num_heads, num_keys, 8), (2, num_heads, num_keys, 8), (2, 6, 5, 8)]
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


def torchs(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    num_prefix_tokens = query.shape[1] // key.shape[1]
    repeated = (each.repeat_interleave(num_prefix_tokens, dim=1) for each in (key, value))
    return functional.scaled_dot_product_attention(query, *repeated, mask, scale=0.3)


@pytest.mark.parametrize("kind", ["seen", "added"])
@pytest.mark.parametrize("num_heads", [6, 2, 1])
def test_products_equal_torchs_own_attention(kind: str, num_heads: int) -> None:
    mask, tensors = masks(torch.float64)[kind], inputs(torch.float64, num_heads=num_heads)
    ours = measured(lambda *each: attend(*each, mask, 0.3), *tensors)
    theirs = measured(lambda *each: torchs(*each, mask), *tensors)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_mask_heads", [1, 6])
@pytest.mark.parametrize("num_heads", [6, 2])
def test_masks_of_every_head_are_kept_apart(num_mask_heads: int, num_heads: int) -> None:
    tensors = inputs(torch.float32, num_heads=num_heads)
    mask = torch.randn(2, num_mask_heads, 5, 7, generator=torch.Generator().manual_seed(1))
    for given in (mask, mask[0]):
        ours = measured(lambda *each, own=given: attention.attention(*each, own, scale=0.3), *tensors)
        theirs = measured(lambda *each, own=given: torchs(*each, own), *tensors)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_keys_and_values_of_every_head_are_handed_on_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value, _ = inputs(torch.float32)
    given: list[Any] = []
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda *each, **_: given.extend(each) or query)
    attention.attention(query, key, value, is_causal=True)
    assert [each is other for each, other in zip(given[:3], (query, key, value), strict=True)] == [True] * 3


@pytest.mark.parametrize("num_keys", [7, 300])
@pytest.mark.parametrize("num_empty", [0, 4])
def test_a_shared_head_stands_before_every_rows_keys_behind_what_nothing_sees(num_keys: int, num_empty: int) -> None:
    query, key, value, _ = inputs(torch.float32, num_keys, num_heads=2)
    sees = torch.ones(2, 1, 5, num_keys + 3, dtype=torch.bool)
    head = [torch.cat([each[:1, :, :3].expand(2, -1, -1, -1), each], dim=2) for each in (key, value)]
    with fast_kernels(JointPrefix(3, num_empty)):
        found = functional.scaled_dot_product_attention(
            query, key, value, functional.pad(sees, (num_empty, 0)), scale=0.3
        )
    torch.testing.assert_close(found, torchs(query, *head, sees), rtol=0, atol=1e-5)


def test_numbers_of_keys_are_filled_up_to_one_that_softmax_is_fast_for() -> None:
    cpu = torch.device("cpu")
    assert [num_filling(each, torch.bfloat16, cpu) for each in (1, 31, 32, 33, 187)] == [31, 1, 0, 31, 5]
    assert num_filling(33, torch.float32, cpu) == 0
    assert [num_filling(each, torch.bfloat16, torch.device("cuda")) for each in (32, 33)] == [0, 15]


@pytest.mark.parametrize("num_empty", [0, 4])
def test_a_joint_prefix_has_the_gradient_of_slices_and_copies(num_empty: int) -> None:
    states = torch.randn(3, 2, 6, 4, requires_grad=True)
    plain = torch.cat([states[:1, :, :2].expand(3, -1, -1, -1), states], dim=2)
    expected = functional.pad(plain, (0, 0, num_empty, 0))
    found, again = JointPrefix(2, num_empty).before(states, 2 * states)
    assert torch.equal(again, 2 * found)
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((each * weights).sum(), states)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_masks", [1, 2])
@pytest.mark.parametrize("num_queries", [1, 5])
def test_heads_end_to_end_attend_as_each_alone(num_masks: int, num_queries: int) -> None:
    query, key, value, grad = inputs(torch.float32, num_heads=2)
    query, grad = query[:, :, :num_queries], grad[:, :, :num_queries]
    mask = torch.zeros(num_masks, 1, num_queries, key.shape[2])
    mask[:, :, 0, 3:] = -torch.inf

    def ours(*each: Tensor) -> Tensor:
        return attention.heads_end_to_end(*each, mask, {"scale": 0.3})

    found = measured(ours, query, key, value, grad)
    for one, other in zip(found, measured(lambda *each: torchs(*each, mask), query, key, value, grad), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_layers_of_a_pass_share_one_mask_and_the_next_pass_has_its_own() -> None:
    mask = torch.zeros(2, 1, 5, 7)
    first = attention._mask_of_groups(mask, 5, 3)
    assert attention._mask_of_groups(mask, 5, 3) is first
    assert attention._mask_of_groups(mask, 5, 2) is not first
    with fast_kernels():
        pass
    assert attention._MASKS.latest is None


def test_cudnn_is_chosen_again_when_the_last_thread_leaves() -> None:
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with attention.without_cudnn():
        with attention.without_cudnn():
            assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_in_bfloat16_it_is_as_near_to_float32_as_torchs_own_kernel() -> None:
    tensors = inputs(torch.bfloat16)
    mask = masks(torch.bfloat16)["added"]
    plain = functional.scaled_dot_product_attention
    exact = measured(lambda *each: plain(*each, mask.float()), *(each.float() for each in tensors))
    kernel = measured(lambda *each: plain(*each, mask), *tensors)
    with fast_kernels():
        ours = measured(lambda *each: plain(*each, mask), *tensors)
    for one, other, true in zip(ours, kernel, exact, strict=True):
        assert (one - true).norm() < 3 * (other - true).norm()


@pytest.mark.parametrize(
    ("dtype", "num_keys", "options", "is_ours"),
    [
        (torch.bfloat16, 7, {}, True),
        (torch.float32, 256, {}, True),
        (torch.float32, 257, {}, False),
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
    with fast_kernels():
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
    monkeypatch.setattr(attention, "_MAX_SCORES", 2 * 6 * 5 * 7 - 1)
    *tensors, _ = inputs(torch.bfloat16)
    with fast_kernels():
        functional.scaled_dot_product_attention(*tensors, masks(torch.bfloat16)["added"])


@pytest.mark.parametrize("changed", ["missing", "other arguments", "other numbers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_torchs_private_gradient_of_softmax_the_numbers_are_the_same(
    changed: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    *tensors, grad = inputs(dtype)
    mask = masks(dtype)["added"]

    def gradients() -> list[torch.Tensor]:
        leaves = [each.detach().clone().requires_grad_() for each in tensors]
        attend(*leaves, mask, 0.3).backward(grad)
        return [each.grad for each in leaves if each.grad is not None]

    expected = gradients()
    if changed == "missing":
        monkeypatch.delattr(torch, "_softmax_backward_data")
    else:
        other = {"other arguments": lambda grad: grad, "other numbers": lambda grad, *_: grad}[changed]
        monkeypatch.setattr(torch, "_softmax_backward_data", other)
    anew = functools.cache(attention._has_softmax_backward.__wrapped__)
    monkeypatch.setattr(attention, "_has_softmax_backward", anew)
    for one, other_grad in zip(gradients(), expected, strict=True):
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2  # a last bit of bfloat16
        torch.testing.assert_close(one, other_grad, rtol=tolerance, atol=tolerance * float(other_grad.abs().max()))
