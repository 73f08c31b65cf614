"""Activation checkpointing of a frozen model: layers keep only their inputs and are run again in the backward pass.

Knows nothing of prompts or of training loops.
"""

import functools
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ptuning.errors import ModelError
from ptuning.model.twin import twin_of


def checkpointing_model(model: Any) -> Any:
    """Another model over the same weights, whose layers are run again in the backward pass.

    The given one is not changed: others may run it meanwhile. Not through transformers' own switch, which works in
    training mode only, where there would be dropout, and drops a cache without a word.

    Raises:
        ModelError: When the model's layers cannot be run again one by one.
    """
    if not _layers(model):
        raise ModelError(
            f"train.gradient_checkpointing with a {model.config.model_type} model",
            "a model with checkpointing layers",
            "Set train.gradient_checkpointing to false",
        )
    twin = twin_of(model)
    for layer in _layers(twin):
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    return twin


def is_checkpointed(model: Any) -> bool:
    """Whether layers are run again in the backward pass, by us or by transformers, which would change a cache twice."""
    return any(_is_ours(layer) or (layer.gradient_checkpointing and layer.training) for layer in _layers(model))


def _is_ours(layer: Any) -> bool:
    forward = vars(layer).get("forward")
    return isinstance(forward, functools.partial) and forward.func is checkpoint


def _layers(model: Any) -> list[Any]:
    return [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
