"""Evaluation on all processes of a run, and which step was the best.

Knows nothing of steps, checkpoints or files.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from ptuning.config import TrainConfig
from ptuning.data import Example
from ptuning.evaluation import Metrics, evaluate
from ptuning.forward import Prompt, ReadOptions
from ptuning.model import Backbone
from ptuning.training.distributed import sum_tensor_over_processes
from ptuning.training.memory import TokenLimit

_ROWS_PER_EVALUATED = 10  # rows trained on for each that is evaluated, where the config does not say
_FEWEST_EVALUATED = 50


@dataclass
class Best:
    """The best step so far on the validation rows."""

    step: int = 0
    """Which step it was; 0 before the first evaluation."""
    value: float = math.inf
    """Its loss, or its accuracy below zero: less is better."""
    num_evaluations_without_improvement: int = 0
    """Evaluations since."""

    def is_improved_by(self, step: int, value: float) -> bool:
        """Takes note of an evaluation; whether it is the best one now."""
        if value < self.value:
            self.step, self.value, self.num_evaluations_without_improvement = step, value, 0
            return True
        self.num_evaluations_without_improvement += 1
        return False


def evaluate_together(
    accelerator: Accelerator,
    backbone: Backbone,
    prompt: Prompt,
    examples: Sequence[Example],
    label_ids: Sequence[Sequence[int]],
    options: ReadOptions,
    limit: TokenLimit,
    name: str = "",
) -> Metrics:
    """Evaluates on all processes, each on its share of the rows; the metrics are of all rows on every process.

    A process whose share is empty takes part in the sums as well: the others would wait for it.

    Args:
        accelerator: The processes, all of which must call this.
        backbone: As in `evaluate`.
        prompt: As in `evaluate`.
        examples: All rows, the same on every process; one or more.
        label_ids: As in `evaluate`.
        options: As in `evaluate`; `limit` decides its `max_batch_tokens`.
        limit: This process's own; it may fall.
        name: As in `evaluate`.
    """
    share = examples[accelerator.process_index :: accelerator.num_processes]
    longest = max(map(len, share), default=0) + max(map(len, label_ids), default=0)
    own = limit.run(
        lambda most: evaluate(backbone, prompt, share, label_ids, replace(options, max_batch_tokens=most), name),
        longest,
    )
    if accelerator.num_processes == 1:
        return own
    sums = torch.tensor(own.sums, dtype=torch.float64, device=accelerator.device)
    return Metrics.of_sums(sum_tensor_over_processes(accelerator, sums).tolist())


def validation_sample(examples: Sequence[Example], settings: TrainConfig, batches_per_step: int) -> list[Example]:
    """The validation rows used while training: a random choice, the same each time."""
    num_trained = settings.eval_steps * batches_per_step * settings.per_device_train_batch_size
    limit = settings.max_eval_samples or max(num_trained // _ROWS_PER_EVALUATED, _FEWEST_EVALUATED)
    return random.Random(settings.seed).sample(examples, min(limit, len(examples)))
