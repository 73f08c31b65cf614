"""Activation checkpointing of a frozen model: layers keep only their inputs and are run again in the backward pass.

Knows nothing of prompts or of training loops.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ptuning.errors import ModelError


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Checkpoints the model's layers while it lasts, through a wrapper of each layer's `forward`.

    Not through transformers' own switch, which works in training mode only, where there would be dropout, and drops a
    cache without a word.

    Raises:
        ModelError: When the model's layers cannot be run again one by one.
    """
    layers = _layers(model)
    if not layers:
        raise ModelError(
            f"train.gradient_checkpointing with a {model.config.model_type} model",
            "a model with checkpointing layers",
            "Set train.gradient_checkpointing to false",
        )
    own = [vars(layer).get("forward") for layer in layers]  # such as accelerate's
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def is_checkpointed(model: Any) -> bool:
    """Whether layers are run again in the backward pass, by us or by transformers, which would change a cache twice."""
    return any(_is_ours(layer) or (layer.gradient_checkpointing and layer.training) for layer in _layers(model))


def _is_ours(layer: Any) -> bool:
    forward = vars(layer).get("forward")
    return isinstance(forward, functools.partial) and forward.func is checkpoint


def _layers(model: Any) -> list[Any]:
    return [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
