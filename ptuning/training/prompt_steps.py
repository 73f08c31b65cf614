"""The work of each step of a run: which rows it reads, and what they add to the prompt encoder's gradient.

Knows nothing of optimizers, validation or files.
"""

import math
from collections.abc import Sequence

from accelerate import Accelerator
from torch import Tensor, nn

from ptuning.config import TrainConfig
from ptuning.data import Batch, BatchStream, Example, prefix_ids
from ptuning.forward import BatchPrompt, Prompt, TensorPrompt, as_batch_prompt, label_logits, memory_explained
from ptuning.model import Backbone
from ptuning.training.backward import PromptApart, RowLoss, backward_in_parts
from ptuning.training.graphs import GraphedPass
from ptuning.training.loop import StepWork
from ptuning.training.memory import TokenLimit
from ptuning.training.readability import TokenPull
from ptuning.training.recipe import num_steps
from ptuning.training.soft_targets import SoftTargets


class PromptSteps:
    """Gives a process its work of a step; the rows follow from the seed and the step alone.

    Args:
        backbone: The frozen model.
        examples: The training rows.
        settings: The run's.
        accelerator: The processes that share each step.
        soft_targets: What a teacher says at the examples' answers: the loss is the divergence from it; None: the
            cross-entropy of the answers.

    Raises:
        ModelError: When the model's layers cannot be run again in the backward pass, and the settings ask for it; when
            its gradients are wrong.
    """

    def __init__(
        self,
        backbone: Backbone,
        examples: Sequence[Example],
        settings: TrainConfig,
        accelerator: Accelerator,
        soft_targets: SoftTargets | None = None,
    ) -> None:
        backbone.require_trainable()
        self._backbone = backbone.with_checkpointing() if settings.gradient_checkpointing else backbone
        self._examples, self._settings, self._accelerator = examples, settings, accelerator
        self._soft_targets = soft_targets
        self.limit = TokenLimit(settings.max_batch_tokens)
        lengths = [len(example) for example in examples]
        self._prefix, self._run = prefix_ids(examples), GraphedPass()
        self._pull = TokenPull(backbone.vocabulary_VH, settings.readability) if settings.readability else None
        batch_size, is_grouped = settings.per_device_train_batch_size, settings.group_by_length
        labels = [each.label or 0 for each in examples] if settings.balanced_sampling else None
        self.stream = BatchStream(lengths, batch_size, settings.seed, is_grouped, labels)

    @property
    def batches_per_step(self) -> int:
        """Batches that all processes together read in a step."""
        return self._settings.gradient_accumulation_steps * self._accelerator.num_processes

    @property
    def num_per_epoch(self) -> int:
        """Steps that read every training row once."""
        return math.ceil(self.stream.num_batches_per_epoch / self.batches_per_step)

    @property
    def num_steps(self) -> int:
        """How many steps the run has."""
        return num_steps(self._settings, self.stream.num_batches_per_epoch, self.batches_per_step)

    def rows_of(self, step: int) -> list[int]:
        """This process's rows of a step: one or more on every process, because no batch of the stream is empty."""
        first = step * self.batches_per_step
        own = range(
            first + self._accelerator.process_index, first + self.batches_per_step, self._accelerator.num_processes
        )
        return [row for index in own for row in self.stream[index]]

    def examples_of(self, step: int) -> list[Example]:
        """The same as examples."""
        return [self._examples[row] for row in self.rows_of(step)]

    def __call__(self, step: int) -> StepWork:
        """This process's work."""
        rows = self.rows_of(step)
        examples = [self._examples[row] for row in rows]
        return StepWork(
            num_label_tokens=sum(len(example.answer_ids) for example in examples),
            num_tokens=sum(example.num_text for example in examples),
            add_gradients=lambda encoder, scale: self._add_gradients(encoder, scale, rows),
        )

    def _add_gradients(self, encoder: nn.Module, scale: float, rows: Sequence[int]) -> Tensor:
        """A step that runs out of memory raises `OutOfMemoryError`, and with auto is first made again in parts."""
        if not self.limit.is_auto:
            return self._backward(self._prompt(encoder), scale, rows, self.limit.num_tokens)
        examples = [self._examples[row] for row in rows]
        with memory_explained(examples):
            apart = PromptApart(as_batch_prompt(self._prompt(encoder)).for_rows(self._backbone, examples))
        loss_sum = self.limit.run(
            lambda limit: self._backward(apart.anew(), scale, rows, limit), longest=max(map(len, examples))
        )
        apart.backward()
        return loss_sum

    def _prompt(self, encoder: nn.Module) -> Prompt:
        """What the encoder makes, pulled to tokens where the settings ask for it."""
        if self._pull is None:
            return encoder
        made = as_batch_prompt(encoder)
        assert isinstance(made, TensorPrompt)  # an encoder that reads rows is refused in the config
        return made.with_tensors([self._pull(each) for each in made.tensors])

    def _backward(self, prompt: Prompt, scale: float, rows: Sequence[int], limit: int | None) -> Tensor:
        return backward_in_parts(
            self._backbone,
            prompt,
            [self._examples[row] for row in rows],
            scale,
            path=self._settings.forward,
            batch_size=self._settings.per_device_train_batch_size,
            max_batch_tokens=limit,
            prefix=self._prefix,
            run=self._run,
            loss_of=None if self._soft_targets is None else self._divergence_from(self._soft_targets.of_rows(rows)),
        )

    def _divergence_from(self, soft_targets: SoftTargets) -> RowLoss:
        """The summed divergence from what a teacher says of a step's rows."""

        def loss_of(prompt: BatchPrompt, batch: Batch, rows: Sequence[int]) -> Tensor:
            batch = batch.to(self._backbone.device)
            logits_NV = label_logits(self._backbone, prompt, batch, self._settings.forward)
            return soft_targets.of_rows(rows).divergences(logits_NV).sum()

        return loss_of
