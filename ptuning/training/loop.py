"""Optimizer steps for any trainable module and any loss: AdamW, schedule, clipping, sums over processes, exact state.

Knows nothing of what is trained, of rows, validation or files.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn

from ptuning.errors import TrainingError
from ptuning.training.distributed import sum_over_processes


@dataclass(frozen=True)
class LoopSettings:
    """How steps are made."""

    max_steps: int
    """Optimizer steps."""
    learning_rate: float
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = 0.0
    """Share of the steps over which the learning rate rises from 0."""
    max_grad_norm: float = 1.0
    """The gradient's norm is clipped to this."""


@dataclass(frozen=True)
class StepWork:
    """What one process does in one step."""

    num_label_tokens: int
    """Tokens that its loss is a sum over; the step's loss is the mean over those of all processes."""
    num_tokens: int
    """Tokens that it reads, for the speed."""
    add_gradients: Callable[[nn.Module, float], float]
    """Takes the module and a scale, adds the gradient of scale x the summed loss, and returns the summed loss in nats.
    With many processes the module comes wrapped, to average gradients: call it as a whole, not its parts."""


@dataclass(frozen=True)
class StepRecord:
    """What is known of a step once it is made, the same on every process."""

    step: int
    """Which step it was, counted from 1."""
    loss: float
    """Mean loss a label token, in nats."""
    learning_rate: float
    """The learning rate it was made with."""
    grad_norm: float
    """The gradient's norm before clipping."""
    tokens_per_second: float
    """Tokens read a second, by all processes together."""


@dataclass
class Progress:
    """How far a loop has come."""

    step: int = 0
    """Steps made."""
    window_loss_sum: float = 0.0
    """Loss of the steps since `take_mean_loss` was last called, summed over label tokens, in nats."""
    window_num_label_tokens: int = 0
    """Label tokens of those steps."""
    seconds: float = 0.0
    """Time spent in steps."""


class NotFiniteError(TrainingError):
    """A loss or a gradient that is not a finite number."""


class Loop:
    """Makes optimizer steps on a module, one at a time, on one process or many.

    Args:
        module: What is trained, on its device; its parameters that require a gradient change.
        work_of: Gives this process's work of a step, counted from 0. A loop that is to be resumed exactly needs work
            that follows from the step alone.
        settings: How steps are made.
        accelerator: The processes that make them together.
    """

    def __init__(
        self,
        module: nn.Module,
        work_of: Callable[[int], StepWork],
        settings: LoopSettings,
        accelerator: Accelerator,
    ) -> None:
        self.module, self.settings, self.progress = module, settings, Progress()
        self._work_of, self._accelerator = work_of, accelerator
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._wrapped, self._optimizer = accelerator.prepare(module, optimizer, device_placement=[False, False])
        # A function, and not an object with fields: those would be saved in every checkpoint.
        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(settings, step))

    def steps(self) -> Iterator[StepRecord]:
        """Makes the steps that are left, and gives a record after each; whoever iterates may stop at any of them.

        Raises:
            NotFiniteError: When a loss or a gradient is not finite; the module stays as the step before left it.
        """
        while self.progress.step < self.settings.max_steps:
            yield self._step()

    def _step(self) -> StepRecord:
        started, work = time.perf_counter(), self._work_of(self.progress.step)
        num_label_tokens = self._sum(work.num_label_tokens)
        scale = self._accelerator.num_processes / num_label_tokens  # processes' gradients are averaged, not summed
        loss_sum = self._sum(work.add_gradients(self._wrapped, scale))
        grad_norm = self._accelerator.clip_grad_norm_(self._wrapped.parameters(), self.settings.max_grad_norm).item()
        self._require_finite(loss_sum, "loss")  # the sum is the same on every process: all stop at the same step
        self._require_finite(grad_norm, "gradient")
        learning_rate = float(self._schedule.get_last_lr()[0])
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        seconds = time.perf_counter() - started
        self.progress.step += 1
        self.progress.window_loss_sum += loss_sum
        self.progress.window_num_label_tokens += int(num_label_tokens)
        self.progress.seconds += seconds
        return StepRecord(
            step=self.progress.step,
            loss=loss_sum / num_label_tokens,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            tokens_per_second=self._sum(work.num_tokens) / seconds,
        )

    def take_mean_loss(self) -> float:
        """The mean loss a label token, in nats, of all steps since this was last called."""
        progress = self.progress
        mean = progress.window_loss_sum / progress.window_num_label_tokens
        progress.window_loss_sum, progress.window_num_label_tokens = 0.0, 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps follow from, besides the settings and the work: plain data and tensors."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "progress": dataclasses.asdict(self.progress),
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state that `state_dict` gave: the same steps follow, to the bit on the CPU."""
        self.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["random"])

    def _sum(self, value: float) -> float:
        return sum_over_processes(self._accelerator, value)

    def _require_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise NotFiniteError(
                f"{what} {value} at step {self.progress.step + 1}",
                "a finite number",
                "Start again with a lower learning rate or in float32",
            )


def rate(settings: LoopSettings, step: int) -> float:
    """The learning rate of a step (counted from 0) as a share of its peak: warm-up, then linear, cosine or constant."""
    num_warmup = math.ceil(settings.warmup_ratio * settings.max_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    left = (settings.max_steps - step) / max(1, settings.max_steps - num_warmup)
    match settings.lr_scheduler_type:
        case "linear":
            return left
        case "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        case "constant":
            return 1.0
