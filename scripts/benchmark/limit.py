"""The rate at which a machine multiplies matrices of a model's own sizes: what a training step is held against."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.device import Device
from ptuning.model.kernels.linear import linear


@torch.no_grad()
def matmul_flops_per_second(model: Any, device: Device) -> float:
    """The rate at which the model's own weights are multiplied, one after the other, with enough tokens to fill it.

    A GPU multiplies 8,192 tokens five times, warmed. A CPU multiplies 1,024, by torch's own function or by ptuning's,
    whichever is faster on this machine.
    """
    num_tokens, num_times = (8192, 5) if device.is_gpu else (1024, 1)
    layers = [each for each in model.model.layers.modules() if isinstance(each, nn.Linear)]
    weight = layers[0].weight
    widths = {each.in_features for each in layers}
    inputs = {width: torch.randn(num_tokens, width, dtype=weight.dtype, device=weight.device) for width in widths}
    if device.is_gpu:
        _multiply(functional.linear, layers, inputs)
    seconds = []
    for product in (functional.linear,) if device.is_gpu else (functional.linear, linear):
        device.synchronise()
        started = time.perf_counter()
        for _ in range(num_times):
            _multiply(product, layers, inputs)
        device.synchronise()
        seconds.append(time.perf_counter() - started)
    return sum(2 * num_tokens * each.weight.numel() for each in layers) * num_times / min(seconds)


def _multiply(product: Callable[..., Tensor], layers: list[nn.Linear], inputs: dict[int, Tensor]) -> None:
    for each in layers:
        product(inputs[each.in_features], each.weight, each.bias)
