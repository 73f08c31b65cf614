"""The rate at which a machine multiplies matrices of a model's own sizes: what a training step is held against."""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from benchmark.device import Device
from ptuning.model.kernels import FastKernels


@torch.no_grad()
def matmul_flops_per_second(model: Any, device: Device) -> float:
    """The rate at which the model's own weights are multiplied, one after the other, with enough tokens to fill it.

    A GPU multiplies 8,192 tokens five times, warmed. A CPU multiplies 1,024, by torch's own function or by ptuning's,
    whichever is faster on this machine.
    """
    num_tokens, num_times = (8192, 5) if device.is_gpu else (1024, 1)
    layers = [each for each in model.model.layers.modules() if isinstance(each, torch.nn.Linear)]
    weight = layers[0].weight
    widths = {each.in_features for each in layers}
    inputs = {width: torch.randn(num_tokens, width, dtype=weight.dtype, device=weight.device) for width in widths}

    def multiply() -> None:
        for each in layers:
            each(inputs[each.in_features])

    ways: list[AbstractContextManager[Any]] = [nullcontext()] if device.is_gpu else [nullcontext(), FastKernels()]
    if device.is_gpu:
        multiply()
    seconds = []
    for way in ways:
        device.synchronise()
        started = time.perf_counter()
        with way:
            for _ in range(num_times):
                multiply()
        device.synchronise()
        seconds.append(time.perf_counter() - started)
    return sum(2 * num_tokens * each.weight.numel() for each in layers) * num_times / min(seconds)
