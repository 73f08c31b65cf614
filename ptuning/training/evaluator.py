"""Evaluates prompts on all processes of a run, and compares a prompt with the same words without it.

Knows nothing of steps, checkpoints or files. Every process must make the same calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ptuning.config import TrainConfig
from ptuning.data import Example, Row, Task
from ptuning.evaluation import Comparison, Metrics, RowScores, score_rows, with_and_without
from ptuning.forward import BatchPrompt, ReadOptions
from ptuning.model import Backbone
from ptuning.training.distributed import sum_over_processes, sum_tensor_over_processes
from ptuning.training.memory import TokenLimit


@dataclass(frozen=True)
class Side:
    """A prompt, or none, and the rows as it reads them."""

    prompt: BatchPrompt
    """The prompt; of no virtual tokens for the words alone."""
    examples: Sequence[Example]
    """The rows, the same on every process."""
    label_ids: Sequence[Sequence[int]]
    """The token ids of each label's text; empty where answers are written."""


def sides_of(backbone: Backbone, prompt: BatchPrompt, task: Task, rows: Sequence[Row]) -> dict[str, Side]:
    """Name -> side, as `with_and_without` names them: the same words without the prompt, where there are any, first."""
    return {
        name: Side(own_prompt, examples, coder.label_ids)
        for name, own_prompt, examples, coder in with_and_without(backbone, prompt, task, rows, with_baseline=True)
    }


class Evaluator:
    """Evaluates on all processes, each on its share of the rows; all get the outcome on all rows.

    Args:
        accelerator: The processes.
        backbone: The frozen model.
        settings: The run's.
        limit: The most tokens that this process reads at once; it may fall.
        shows_bars: Whether progress bars are shown.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        backbone: Backbone,
        settings: TrainConfig,
        limit: TokenLimit,
        shows_bars: bool = True,
    ) -> None:
        self._accelerator, self._backbone, self._settings, self._limit = accelerator, backbone, settings, limit
        self._shows_bars = shows_bars and accelerator.is_main_process

    def scores(self, side: Side, name: str = "") -> RowScores:
        """The scores of this process's share of the rows.

        Args:
            side: What is evaluated.
            name: The label of the progress bar; "": none is shown.

        Raises:
            OutOfMemoryError: For a batch that does not fit into the device's memory.
        """
        share = self.share(side)
        longest = max(map(len, share), default=0) + max(map(len, side.label_ids), default=0)
        options = self._options(name)

        def read(most: int | None) -> RowScores:
            own = replace(options, max_batch_tokens=most)
            return score_rows(self._backbone, side.prompt, share, side.label_ids, own, name)

        return self._limit.run(read, longest)

    def share(self, side: Side) -> Sequence[Example]:
        """This process's share of the rows."""
        return side.examples[self._accelerator.process_index :: self._accelerator.num_processes]

    def metrics(self, side: Side, name: str = "") -> Metrics:
        """The metrics of a side, on all rows; arguments and errors as in `scores`."""
        return self.metrics_of(side, self.scores(side, name))

    def metrics_of(self, side: Side, scores: RowScores) -> Metrics:
        """The metrics on all rows that follow from the processes' scores.

        A process whose share is empty takes part in the sums as well: the others would wait for it.
        """
        own = Metrics.of(scores, self.share(side))
        if self._accelerator.num_processes == 1:
            return own
        sums = torch.tensor(own.sums, dtype=torch.float64, device=self._accelerator.device)
        return Metrics.of_sums(sum_tensor_over_processes(self._accelerator, sums).tolist())

    def comparison_of(self, with_prompt: RowScores, without: RowScores, is_classification: bool) -> Comparison:
        """How two sides' scores of the same rows compare, on all rows."""
        return Comparison.of(with_prompt, without, is_classification).summed(self._sum)

    def together(self, scores: RowScores) -> RowScores:
        """The scores of all rows in their own order, of the scores of each process's share."""
        number, own = self._accelerator.num_processes, (scores.log_probs_N, scores.is_correct_N, scores.labels_NC)
        if number == 1:
            return scores
        shares = gather_object([own])
        return RowScores(*(_interleaved([share[k] for share in shares]) for k in range(3)))

    def _sum(self, value: float) -> float:
        return sum_over_processes(self._accelerator, value)

    def _options(self, name: str) -> ReadOptions:
        return ReadOptions(
            batch_size=self._settings.per_device_eval_batch_size,
            path=self._settings.forward,
            progress=self._shows_bars and name != "",
        )


def _interleaved(shares: Sequence[Tensor | None]) -> Any:
    """Tensors of every n-th row each, from the first, the second and so on, as one; None if there are none."""
    given = [share for share in shares if share is not None]
    if not given:
        return None
    whole = torch.empty(sum(map(len, given)), *given[0].shape[1:], dtype=given[0].dtype)
    for first, share in enumerate(given):
        whole[first :: len(given)] = share
    return whole
