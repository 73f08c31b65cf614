"""Small weights: what they hold, their products and gradients, and what a graph keeps of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from ptuning.model.quantized_weights import Int4Weight, Int8Weight

DTYPES = [torch.float32, torch.bfloat16]


def layer_of(kind: str, dtype: torch.dtype, width: int = 96, bias: bool = True) -> tuple[nn.Linear, torch.Tensor]:
    """A layer with a small weight, and its whole weight."""
    torch.manual_seed(0)
    layer = nn.Linear(width, 64, bias=bias).to(dtype).requires_grad_(False)
    whole = layer.weight.clone()
    if kind == "int8":
        quantize_(layer, Int8WeightOnlyConfig(), filter_fn=lambda *_: True)
    weight = Int8Weight.of(layer.weight) if kind == "int8" else Int4Weight.of(whole)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer, whole


def test_four_bits_hold_the_nearest_of_sixteen_values_of_each_group() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 96)
    small = Int4Weight.of(weight)
    groups, whole = weight.view(8, 3, 32), small.whole().view(8, 3, 32)
    for group, found in zip(groups.flatten(0, 1), whole.flatten(0, 1), strict=True):
        lowest = group.min().bfloat16().float()
        step = ((group.max() - lowest) / 15).bfloat16().float()
        values = lowest + step * torch.arange(16)
        nearest = values[(group[:, None] - values).abs().argmin(dim=1)]
        torch.testing.assert_close(found, nearest, rtol=0, atol=1e-6)
    assert sum(getattr(small, name).nbytes for name in small.tensor_data_names) * 8 == 5 * weight.numel()


def test_numbers_that_sixteen_values_can_hold_are_kept() -> None:
    rows = torch.stack([torch.arange(32.0) % 16, torch.full((32,), -3.0), torch.zeros(32)])
    assert torch.equal(Int4Weight.of(rows).whole(), rows)


@pytest.mark.parametrize(("width", "fits"), [(96, True), (48, True), (24, True), (20, False), (7, False)])
def test_rows_are_cut_into_groups_where_they_can_be(width: int, fits: bool) -> None:
    weight = torch.randn(4, width)
    assert Int4Weight.fits(weight) is fits
    if fits:
        assert (Int4Weight.of(weight).whole() - weight).abs().max() < 0.3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_products_and_gradients_are_those_of_the_whole_numbers(kind: str, dtype: torch.dtype) -> None:
    layer, _ = layer_of(kind, dtype)
    whole = layer.weight.whole()
    input = torch.randn(2, 3, 96, dtype=dtype, requires_grad=True)
    output = layer(input)
    assert output.dtype == dtype
    gradient = torch.randn_like(output)
    output.backward(gradient)
    atol = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(output, functional.linear(input, whole, layer.bias), rtol=0, atol=atol)
    torch.testing.assert_close(input.grad, gradient @ whole, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_graph_keeps_no_whole_weight(kind: str) -> None:
    layer, whole = layer_of(kind, torch.float32)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.numel()) or each, lambda each: each):
        layer(torch.randn(2, 96, requires_grad=True))
    assert not [each for each in kept if each >= whole.numel()]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_small_weight_moves_to_another_device_small(kind: str) -> None:
    layer, _ = layer_of(kind, torch.bfloat16)
    before = type(layer.weight)
    layer.to("meta")
    assert type(layer.weight) is before
    assert all(getattr(layer.weight, name).device.type == "meta" for name in layer.weight.__tensor_flatten__()[0])
