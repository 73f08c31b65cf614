"""Quantizes the linear layers of a frozen model to 8 or 4 bits per weight.

Knows nothing of prompts or training.
"""

from typing import Any

import torch
from torch import nn

from ptuning.errors import ModelError


def quantize(model: Any, kind: str, device: torch.device | None = None) -> None:
    """Replaces the weights of all linear layers except the head by quantized ones, and moves the model to a device.

    Weights are moved and quantized one after the other, so the device needs no room for the whole model. The weights
    take less memory; products are still computed in floating point, and gradients flow through them to their inputs.

    Args:
        model: A transformers model.
        kind: int8: 8-bit integers and one scale per row (torchao). int4: 4-bit integers, with a step and a lowest value
            for 32 of them; layers whose width 8 does not divide stay whole.
        device: Where the model goes; None: where it is.

    Raises:
        ModelError: If torchao is not installed, or the model has weights outside linear layers.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        from ptuning.model.quantized_weights import Int4Weight, Int8Weight
    except ImportError:
        received = f"model.quantization: {kind} without torchao"
        raise ModelError(received, "torchao installed", "pip install torchao") from None
    layers = [each for each in model.modules() if type(each) is nn.Linear and each is not model.get_output_embeddings()]
    if not layers:
        raise _unfit(model, kind)
    for layer in layers:
        if device is not None:
            layer.to(device)
        if kind == "int8":
            quantize_(layer, Int8WeightOnlyConfig(), filter_fn=lambda module, name: True)
            layer.weight = nn.Parameter(Int8Weight.of(layer.weight), requires_grad=False)
        elif Int4Weight.fits(layer.weight):
            layer.weight = nn.Parameter(Int4Weight.of(layer.weight), requires_grad=False)
    if device is not None:
        model.to(device)
    _require_running(model, kind)


def _require_running(model: Any, kind: str) -> None:
    ids_1T = torch.tensor([[1, 2]], device=model.device)
    try:
        with torch.no_grad():
            model(input_ids=ids_1T, **({"decoder_input_ids": ids_1T} if model.config.is_encoder_decoder else {}))
    except NotImplementedError:  # the model uses a linear layer's weight without calling the layer
        raise _unfit(model, kind) from None


def _unfit(model: Any, kind: str) -> ModelError:
    return ModelError(
        f"model.quantization: {kind} with a {model.config.model_type} model, whose weights are not in linear layers",
        "a model of linear layers",
        "Set model.quantization to none",
    )
