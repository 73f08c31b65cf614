"""Evaluates prompts on all processes of a run, and compares a prompt with the same words without it.

Knows nothing of steps, checkpoints or files. Every process must make the same calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from accelerate import Accelerator

from ptuning.config import TrainConfig
from ptuning.data import Example, Row, Task
from ptuning.evaluation import Comparison, Metrics, RowScores, score_rows, with_and_without
from ptuning.forward import BatchPrompt, ReadOptions
from ptuning.model import Backbone
from ptuning.training.distributed import sum_over_processes
from ptuning.training.memory import TokenLimit
from ptuning.training.validation import evaluate_together


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
    """

    def __init__(self, accelerator: Accelerator, backbone: Backbone, settings: TrainConfig, limit: TokenLimit) -> None:
        self._accelerator, self._backbone, self._settings, self._limit = accelerator, backbone, settings, limit

    def metrics(self, side: Side, name: str = "") -> Metrics:
        """Evaluates a side.

        Args:
            side: What is evaluated.
            name: The label of the progress bar; "": none is shown.

        Raises:
            OutOfMemoryError: For a batch that does not fit into the device's memory.
        """
        return evaluate_together(
            self._accelerator,
            self._backbone,
            side.prompt,
            side.examples,
            side.label_ids,
            self._options(name),
            self._limit,
            name,
        )

    def comparison(self, with_prompt: Side, without: Side, name: str = "") -> Comparison:
        """Compares two sides on the same rows; arguments and errors as in `metrics`."""
        one, other = self._own_scores(with_prompt, name), self._own_scores(without, name)
        own = Comparison.of(one, other, is_classification=bool(with_prompt.label_ids))
        return own.summed(lambda value: sum_over_processes(self._accelerator, value))

    def _own_scores(self, side: Side, name: str) -> RowScores:
        """The scores of this process's share of the rows."""
        share = side.examples[self._accelerator.process_index :: self._accelerator.num_processes]
        longest = max(map(len, share), default=0) + max(map(len, side.label_ids), default=0)
        options = self._options(name)

        def scores(most: int | None) -> RowScores:
            own = replace(options, max_batch_tokens=most)
            return score_rows(self._backbone, side.prompt, share, side.label_ids, own, name)

        return self._limit.run(scores, longest)

    def _options(self, name: str) -> ReadOptions:
        return ReadOptions(
            batch_size=self._settings.per_device_eval_batch_size,
            path=self._settings.forward,
            progress=self._accelerator.is_main_process and name != "",
        )
