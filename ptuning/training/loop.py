"""Optimizer steps for any trainable module and any loss: AdamW, schedule, clipping, sums over processes, exact state.

Knows nothing of what is trained, of rows, validation or files.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ptuning.errors import TrainingError
from ptuning.training.distributed import sum_over_processes, sum_tensor_over_processes


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
    logging_steps: int = 1
    """Steps from one wait for the device to the next; a loss that is not finite is noticed then."""


@dataclass(frozen=True)
class StepWork:
    """What one process does in one step."""

    num_label_tokens: int
    """Tokens that its loss is a sum over; the step's loss is the mean over those of all processes."""
    num_tokens: int
    """Tokens that it reads, for the speed."""
    add_gradients: Callable[[nn.Module, float], Tensor | float]
    """Takes the module and a scale, adds the gradient of scale x the summed loss, and returns the summed loss in nats,
    best as a tensor on the device, so that nothing waits for it.
    With many processes the module comes wrapped, to average gradients: call it as a whole, not its parts."""


@dataclass(frozen=True)
class StepRecord:
    """What is known of a step once it is made, the same on every process."""

    step: int
    """Which step it was, counted from 1."""
    learning_rate: float
    """The learning rate it was made with."""
    tokens_per_second: float
    """Tokens read a second, by all processes together, between the last two waits for the device."""
    num_label_tokens: int
    """Label tokens of all processes."""
    numbers: Tensor
    """The summed loss in nats and the gradient's norm, on the device."""

    @cached_property
    def _read(self) -> list[float]:
        return list(self.numbers.tolist())

    @property
    def loss(self) -> float:
        """Mean loss a label token, in nats; reading it waits for the device."""
        return self._read[0] / self.num_label_tokens

    @property
    def grad_norm(self) -> float:
        """The gradient's norm before clipping; reading it waits for the device."""
        return self._read[1]


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


class Health:
    """Watches the numbers of steps on the device, without waiting for it; remembers the first that are not finite."""

    def __init__(self, device: torch.device) -> None:
        self.is_bad = torch.zeros((), device=device)
        """1 from the first numbers on that are not finite, else 0."""
        self._num_good = torch.zeros((), device=device)
        self._latest = torch.zeros(2, device=device)

    def note(self, numbers: Tensor) -> None:
        """Takes note of a step's summed loss and gradient norm."""
        self._latest = torch.where(self.is_bad > 0, self._latest, numbers)  # those of the first bad step stay
        self.is_bad.copy_(torch.maximum(self.is_bad, (~numbers.isfinite()).any().float()))
        self._num_good += 1 - self.is_bad

    def require(self, first_step: int) -> None:
        """Raises `NotFiniteError` for the first bad step; waits for the device.

        Args:
            first_step: The step, counted from 1, whose numbers were noted first.
        """
        is_bad, num_good, loss, norm = torch.stack([self.is_bad, self._num_good, *self._latest]).tolist()
        if is_bad:
            what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
            raise NotFiniteError(
                f"{what} {value} at step {first_step + int(num_good)}",
                "a finite number",
                "Start again with a lower learning rate or in float32",
            )


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
        self._device = next(module.parameters()).device
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self._wrapped, self._optimizer = accelerator.prepare(module, optimizer, device_placement=[False, False])
        # A function, and not an object with fields: those would be saved in every checkpoint.
        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(settings, step))
        self._start_counting()

    def _start_counting(self) -> None:
        """Begins to watch and to count on the device, at the step where the loop stands."""
        self._first_step, self._health = self.progress.step + 1, Health(self._device)
        inner = getattr(self._optimizer, "optimizer", self._optimizer)  # accelerate wraps it
        inner.found_inf = self._health.is_bad
        self._window_loss = torch.zeros((), dtype=_sum_dtype(self._device), device=self._device)
        self._speed, self._tokens, self._seconds = 0.0, 0, 0.0

    def steps(self) -> Iterator[StepRecord]:
        """Makes the steps that are left, and gives a record after each; whoever iterates may stop at any of them.

        Raises:
            NotFiniteError: When a loss or a gradient has not been finite, at the next wait for the device; the module
                stays as the step before left it.
        """
        while self.progress.step < self.settings.max_steps:
            yield self._step()

    def _step(self) -> StepRecord:
        started, work = time.perf_counter(), self._work_of(self.progress.step)
        num_label_tokens = self._sum(work.num_label_tokens)
        scale = self._accelerator.num_processes / num_label_tokens  # processes' gradients are averaged, not summed
        own_loss = work.add_gradients(self._wrapped, scale)
        grad_norm = self._accelerator.clip_grad_norm_(self._wrapped.parameters(), self.settings.max_grad_norm)
        loss = sum_tensor_over_processes(self._accelerator, torch.as_tensor(own_loss, device=self._device).float())
        numbers = torch.stack([loss, grad_norm.to(loss)])  # the same on every process: all stop at the same step
        self._note(numbers)
        learning_rate = float(self._schedule.get_last_lr()[0])
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self.progress.step += 1
        self.progress.window_num_label_tokens += int(num_label_tokens)
        self._tokens += work.num_tokens
        self._count_seconds(time.perf_counter() - started)
        if self.progress.step % self.settings.logging_steps == 0 or self.progress.step == self.settings.max_steps:
            self.require_finite()
        return StepRecord(self.progress.step, learning_rate, self._speed, int(num_label_tokens), numbers)

    def _note(self, numbers: Tensor) -> None:
        """Watches the step's numbers; the optimizer makes no step from the first bad ones on."""
        self._health.note(numbers)
        self._window_loss += torch.where(self._health.is_bad > 0, 0, numbers[0])

    def _count_seconds(self, seconds: float) -> None:
        self.progress.seconds += seconds
        self._seconds += seconds

    def require_finite(self) -> None:
        """Waits for the device; raises `NotFiniteError` if a loss or a gradient since the beginning is not finite.

        The time that it waits counts as that of the steps. Every process must call it.
        """
        started = time.perf_counter()
        self._health.require(self._first_step)
        self._count_seconds(time.perf_counter() - started)
        if self._tokens:
            self._speed = self._sum(self._tokens) / self._seconds
            self._tokens, self._seconds = 0, 0.0

    def take_mean_loss(self) -> float:
        """The mean loss a label token, in nats, of all steps since this was last called."""
        self._read_window()
        progress = self.progress
        mean = progress.window_loss_sum / progress.window_num_label_tokens
        progress.window_loss_sum, progress.window_num_label_tokens = 0.0, 0
        return mean

    def _read_window(self) -> None:
        """Adds what was summed on the device to the progress."""
        self.progress.window_loss_sum += float(self._window_loss)
        self._window_loss.zero_()

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps follow from, besides the settings and the work: plain data and tensors.

        Raises:
            NotFiniteError: As in `steps`.
        """
        self._health.require(self._first_step)
        self._read_window()
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
        groups = [{**group, "fused": True} for group in state["optimizer"]["param_groups"]]  # older states have none
        self._optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        self._schedule.load_state_dict(state["schedule"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["random"])
        self._start_counting()

    def _sum(self, value: float) -> float:
        return sum_over_processes(self._accelerator, value)


def _sum_dtype(device: torch.device) -> torch.dtype:
    """The precision in which losses are summed: double where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


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
