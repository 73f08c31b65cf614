"""The output layers: the final norm's scale and shift and a new linear head over the labels, by training steps.

All below stays frozen, so a row's hidden state is computed once. Behind a norm, training its scale and shift is the
same as training a scale and a shift of its output. Knows nothing of prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn import functional

from ptuning.comparison.protocol import Fact, Facts, Fitted, Job, Way, labels_of
from ptuning.comparison.reading import hidden_states
from ptuning.comparison.steps import kept_best, steps_of
from ptuning.comparison.storage import Saved, write_own, write_tensors
from ptuning.data import BatchStream, Row, Task
from ptuning.model import Backbone
from ptuning.training import Loop, PromptSteps, StepWork, accelerator_on, loop_settings

_FILE = "head.safetensors"


class Head(nn.Module):
    """Scores of the labels from the last hidden state."""

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.scale_H, self.shift_H = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.linear = nn.Linear(width, num_labels)
        nn.init.zeros_(self.linear.weight)

    def forward(self, state_NH: Tensor) -> Tensor:
        """Scores `[N, C]`."""
        scores_NC: Tensor = self.linear(state_NH * self.scale_H + self.shift_H)
        return scores_NC


@dataclass
class Headed(Fitted):
    """A frozen base with a head of its own."""

    backbone: Backbone
    """The frozen model."""
    task: Task
    """The words."""
    head: Head
    """The head."""
    num_trained: int = 0
    chosen: Mapping[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def label_scores(self, rows: Sequence[Row]) -> Tensor:
        """As in `Fitted`."""
        state_NH, _ = hidden_states(self.backbone, self.task, rows)
        scores_NC: Tensor = self.head(state_NH)
        return scores_NC

    def save(self, directory: Path) -> None:
        """As in `Fitted`."""
        write_own(directory, {"kind": "output-layers", "task": vars(self.task)})
        write_tensors(directory / _FILE, self.head.state_dict())

    @classmethod
    def load(cls, saved: Saved) -> Self:
        """Brings it back."""
        head = Head(saved.base.width, saved.num_labels).requires_grad_(False)
        shapes = {name: list(each.shape) for name, each in head.state_dict().items()}
        head.load_state_dict(saved.tensors(_FILE, shapes))
        return cls(saved.base, saved.task, head)


class OutputLayers(Way):
    """The final norm and a new head over the labels; validation rows choose the rate and the step."""

    name, title = "output-layers", "the final norm and a new head over the labels"
    rate: ClassVar[float] = 3e-3
    writes = False
    facts: ClassVar[Facts] = Facts(
        learns=True,
        many_tasks=Fact(True, "a small head a task on the same hidden states"),
        rows_count_at_once=Fact(False, "train again"),
        readable=Fact(False, "weights of hidden states"),
        works_in_vllm=Fact(False, "its pooling mode gives hidden states; the head runs elsewhere"),
    )

    def fit(self, job: Job) -> Headed:
        """As in `Way`."""
        states = States(job)
        choosing_NH, _ = hidden_states(job.backbone, job.words, job.choosing)
        rates = enumerate(job.effort.rates(self.rate))
        tried = [self._fit(job, i, rate, states, choosing_NH) for i, rate in rates]
        return max(tried, key=lambda each: each[0])[1]

    def _fit(self, job: Job, place: int, rate: float, states: "States", choosing_NH: Tensor) -> tuple[float, Headed]:
        """One training: the accuracy on the validation rows, and the head as it was best."""
        set_seed(job.seed)
        settings, accelerator = replace(job.config.train, seed=job.seed), accelerator_on(torch.device("cpu"))
        examples = job.backbone.coder(job.words).encode(job.train)
        steps = PromptSteps(job.backbone, examples, settings, accelerator)
        labels_N, own_N = torch.tensor(labels_of(job.task, job.train)), torch.tensor(labels_of(job.task, job.choosing))
        head, stream = Head(job.backbone.width, len(job.task.verbalizer or ())), steps.stream

        def work(step: int) -> StepWork:
            places = _places(stream, step, steps.batches_per_step)

            def add_gradients(module: nn.Module, scale: float) -> Tensor:
                loss = functional.cross_entropy(module(states.of(places)), labels_N[places], reduction="sum")
                (loss * scale).backward()
                return loss.detach()

            return StepWork(len(places), len(places), add_gradients)

        def loop(peak: float, num_steps: int) -> Loop:
            return Loop(head, work, loop_settings(settings, peak, num_steps), accelerator)

        @torch.no_grad()
        def accuracy() -> float:
            return float((head(choosing_NH).argmax(dim=1) == own_N).float().mean())

        num_steps = steps_of(job, place, steps, loop, accuracy)
        best, best_step = kept_best(loop(rate, num_steps), job.effort.num_evaluations, accuracy)
        num_trained = sum(each.numel() for each in head.parameters())
        chosen = {"rate": f"{rate:.2g}", "step": str(best_step)}
        return best, Headed(job.backbone, job.words, head.requires_grad_(False), num_trained, chosen)


class States:
    """The base's last hidden states of training rows, each read when it is first asked for."""

    def __init__(self, job: Job) -> None:
        self._job, self._known = job, dict[int, Tensor]()

    def of(self, places: Sequence[int]) -> Tensor:
        """Those of some rows, `[N, H]` fp32."""
        new = sorted(set(places) - self._known.keys())
        if new:
            state_NH, _ = hidden_states(self._job.backbone, self._job.words, [self._job.train[i] for i in new])
            self._known.update(zip(new, state_NH, strict=True))
        return torch.stack([self._known[i] for i in places])


def _places(stream: BatchStream, step: int, batches_per_step: int) -> list[int]:
    """The rows of a step."""
    return [row for i in range(step * batches_per_step, (step + 1) * batches_per_step) for row in stream[i]]
