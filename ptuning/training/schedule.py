"""How the learning rate rises and falls over a run.

Knows nothing of optimizers.
"""

import math

from ptuning.config import TrainConfig


def rate(settings: TrainConfig, max_steps: int, step: int) -> float:
    """The learning rate of a step (counted from 0) as a share of its peak: warm-up, then linear, cosine or constant."""
    num_warmup = math.ceil(settings.warmup_ratio * max_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    left = (max_steps - step) / max(1, max_steps - num_warmup)
    match settings.lr_scheduler_type:
        case "linear":
            return left
        case "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        case "constant":
            return 1.0
