"""Which rows are read while training, and which step was the best on them.

Knows nothing of models, checkpoints or files.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ptuning.config import TrainConfig

AnyRow = TypeVar("AnyRow")

_ROWS_PER_EVALUATED = 10  # rows trained on for each that is evaluated, where the config does not say
_FEWEST_EVALUATED = 50


@dataclass
class Best:
    """The step that is kept, by the validation rows."""

    step: int = 0
    """Which step is kept; 0: the untrained prompt, or no evaluation yet."""
    value: float = math.inf
    """The best loss, or the best accuracy below zero: less is better."""
    loss: float = math.inf
    """The lowest loss."""
    num_evaluations_without_improvement: int = 0
    """Evaluations since the last one that was better than all before, in what is measured or in the loss."""

    @property
    def is_known(self) -> bool:
        """Whether there was an evaluation."""
        return self.value < math.inf

    def is_improved_by(self, step: int, value: float, loss: float, tolerance: float = 0.0) -> bool:
        """Takes note of an evaluation; whether its prompt is the one to keep now.

        Args:
            step: The step that it follows.
            value: Its loss, or its accuracy below zero.
            loss: Its loss: on few rows it still falls while the accuracy stands.
            tolerance: A value worse than the best one by at most this counts as no worse: the later prompt is
                kept, after the one-standard-error rule of Breiman et al. 1984.
        """
        is_better = value < self.value or loss < self.loss
        self.num_evaluations_without_improvement = 0 if is_better else self.num_evaluations_without_improvement + 1
        is_kept = value < self.value or (tolerance > 0 and value <= self.value + tolerance)
        self.value, self.loss = min(value, self.value), min(loss, self.loss)
        self.step = step if is_kept else self.step
        return is_kept


def validation_sample(
    rows: Sequence[AnyRow], settings: TrainConfig, eval_steps: int, batches_per_step: int
) -> list[AnyRow]:
    """The validation rows used while training: a random choice, the same each time and in whatever form rows are.

    Args:
        rows: All validation rows.
        settings: The run's.
        eval_steps: Steps between evaluations.
        batches_per_step: Batches that all processes together read in a step.
    """
    num_trained = eval_steps * batches_per_step * settings.per_device_train_batch_size
    limit = settings.max_eval_samples or max(num_trained // _ROWS_PER_EVALUATED, _FEWEST_EVALUATED)
    return random.Random(settings.seed).sample(rows, min(limit, len(rows)))
