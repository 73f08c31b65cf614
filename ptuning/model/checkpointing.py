"""Activation checkpointing of a frozen model: layers keep only their inputs and run again in the backward pass.

Knows nothing of prompts or of training loops.
"""

import functools
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ptuning.errors import ModelError
from ptuning.model.kernels import same_kernels
from ptuning.model.twin import twin_of


def checkpointing_model(model: Any) -> Any:
    """A copy of the model that shares its weights and uses activation checkpointing.

    The given model is not changed, so other threads may run it meanwhile. transformers' own switch is not used: it
    works in training mode only, with dropout, and silently drops the cache.

    Raises:
        ModelError: If the model has no layers that support checkpointing.
    """
    if not _layers(model):
        raise ModelError(
            f"train.gradient_checkpointing with a {model.config.model_type} model",
            "a model with checkpointing layers",
            "Set train.gradient_checkpointing to false",
        )
    twin = twin_of(model)
    for layer in _layers(twin):
        # Layers draw no random numbers: the model is in eval mode. Keeping the generator's state would wait for a GPU.
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": same_kernels}
        layer.forward = functools.partial(checkpoint, layer.forward, **options)
    return twin


def is_checkpointed(model: Any) -> bool:
    """Whether layers run again in the backward pass, by ptuning or by transformers; a cache would then fill twice."""
    return any(_is_ours(layer) or (layer.gradient_checkpointing and layer.training) for layer in _layers(model))


def _is_ours(layer: Any) -> bool:
    forward = vars(layer).get("forward")
    return isinstance(forward, functools.partial) and forward.func is checkpoint


def _layers(model: Any) -> list[Any]:
    return [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
