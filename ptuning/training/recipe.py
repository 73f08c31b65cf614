"""What a run's settings come to for its base model, its encoder and its rows.

Knows nothing of steps or files.
"""

import math

from ptuning.config import TrainConfig
from ptuning.model import Backbone
from ptuning.prompts import PromptEncoder, initializers
from ptuning.training.loop import LoopSettings

DEFAULT_EPOCHS = 3.0  # passes over the training rows where the settings name neither steps nor epochs
LEAST_DEFAULT_STEPS = 300  # and at least as many steps


def loop_settings(settings: TrainConfig, learning_rate: float, num_steps: int) -> LoopSettings:
    """How a run's steps are made, with this peak learning rate."""
    return LoopSettings(
        max_steps=num_steps,
        learning_rate=learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_ratio=settings.warmup_ratio,
        max_grad_norm=settings.max_grad_norm,
        logging_steps=settings.logging_steps,
    )


def learning_rate(settings: TrainConfig, encoder: PromptEncoder, backbone: Backbone) -> float:
    """The peak learning rate; with auto the encoder's own, in units of the vocabulary's standard deviation.

    AdamW moves every value by about the learning rate a step, so what matters is its size beside the embeddings'.
    """
    if settings.learning_rate != "auto":
        return settings.learning_rate
    return encoder.rate_in_deviations * initializers.deviation(backbone.vocabulary_VH)


def num_steps(settings: TrainConfig, batches_per_epoch: int, batches_per_step: int) -> int:
    """How many steps a run has."""
    if settings.max_steps is not None:
        return settings.max_steps
    num_epochs = settings.num_train_epochs or DEFAULT_EPOCHS
    in_epochs = max(1, math.ceil(num_epochs * batches_per_epoch / batches_per_step))
    return in_epochs if settings.num_train_epochs else max(in_epochs, LEAST_DEFAULT_STEPS)
