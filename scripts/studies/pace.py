"""How many of a method's steps take the time of some of PEFT's, measured in turns on the same rows.

Knows nothing of tasks, scores or files.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from ptuning.data import Example
from ptuning.model import Backbone
from ptuning.training import PromptSteps

WARM_STEPS = 2
TIMED_STEPS = 7
STEPS = WARM_STEPS + TIMED_STEPS
"""Steps that each side makes."""


class PeftSteps:
    """PEFT's prompt tuning as its documentation trains it: its model's own forward, rows padded on the right.

    Args:
        backbone: The frozen model; it is loaded anew as transformers gives it.
        num_virtual_tokens: P.
        steps: Gives the rows.
    """

    def __init__(self, backbone: Backbone, num_virtual_tokens: int, steps: PromptSteps) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(backbone.name, dtype=backbone.dtype)
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_virtual_tokens)
        self.model = peft.get_peft_model(model, config).to(backbone.device)
        """PEFT's model."""
        trained = [each for each in self.model.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
        self._backbone, self._steps, self.device = backbone, steps, backbone.device

    def __call__(self, step: int) -> None:
        """Makes a step, counted from 0."""
        self.loss(self._steps.examples_of(step)).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def loss(self, examples: Sequence[Example]) -> Tensor:
        """Mean cross-entropy over the answers' tokens, in nats."""
        batch = self._backbone.collate(_without_slots(examples)).to(self.device)
        loss: Tensor = self.model(batch.ids_BT, attention_mask=batch.mask_BT, labels=batch.labels_BT).loss
        return loss


def _without_slots(examples: Sequence[Example]) -> list[Example]:
    """The rows without virtual tokens, which PEFT puts in front itself."""
    return [dataclasses.replace(each, ids=[i for i in each.ids if i >= 0]) for each in examples]


@dataclass(frozen=True)
class Paces:
    """Seconds of a step, medians."""

    theirs: float
    """PEFT's."""
    ours: float
    """The other method's."""
    ratio: float
    """The first over the second, the median of the pairs of the same rows."""

    def steps_for(self, peft_steps: int) -> int:
        """Steps of the other method that take the time of so many of PEFT's."""
        return max(1, round(peft_steps * self.ratio))


def measured(theirs: PeftSteps, ours: Callable[[int], object]) -> Paces:
    """Times both in turns on the same rows, once they are warm.

    Args:
        theirs: Makes PEFT's step of a number.
        ours: Makes the other method's step of that number.
    """
    pairs = [(_seconds(theirs, k, theirs.device), _seconds(ours, k, theirs.device)) for k in range(STEPS)]
    timed = pairs[WARM_STEPS:]
    medians = [statistics.median(each) for each in zip(*timed, strict=True)]
    return Paces(medians[0], medians[1], statistics.median(a / b for a, b in timed))


def _seconds(step: Callable[[int], object], number: int, device: torch.device) -> float:
    _wait_for(device)
    started = time.perf_counter()
    step(number)
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
