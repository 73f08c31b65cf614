"""Validates a run's prompt as it trains: when, on which rows, beside what, and whether the run should end.

Knows nothing of steps' work, logs or checkpoints.
"""

from collections.abc import Sequence
from typing import Any, Literal

from ptuning.config import RunConfig
from ptuning.evaluation import WITH, WITHOUT, Metrics
from ptuning.forward import BatchPrompt
from ptuning.training.baseline import Baseline, first_record
from ptuning.training.evaluator import Evaluator, Side, sides_of
from ptuning.training.inputs import Inputs
from ptuning.training.prompt_steps import PromptSteps
from ptuning.training.validation import AnyRow, Best, validation_sample

_PATIENCE = 5  # evaluations without improvement that end a run, where the config does not say
_EVALUATIONS = 10  # in a run, where the config does not say


class Validator:
    """Validates on the same sample of the validation rows each time; every process must make the same calls.

    Args:
        config: The run's.
        inputs: Its model and rows.
        steps: Its steps, which decide how many rows an evaluation reads.
        evaluator: What reads them.
    """

    def __init__(self, config: RunConfig, inputs: Inputs, steps: PromptSteps, evaluator: Evaluator) -> None:
        self._config, self._inputs, self._steps, self._evaluator = config, inputs, steps, evaluator
        self.best = Best()
        """The best evaluation so far."""
        self.baseline = Baseline(self._measure)
        """What was measured before the first step."""

    def go_on_from(self, best: Best, records: Sequence[dict[str, Any]]) -> None:
        """Takes up an earlier part of the run: its best evaluation, and what it logged."""
        self.best, self.baseline = best, Baseline.of_log(records, self._measure)

    @property
    def has_rows(self) -> bool:
        """Whether there are rows to validate on."""
        return "validation" in self._inputs.examples

    @property
    def eval_steps(self) -> int:
        """Steps between evaluations."""
        return self._config.train.eval_steps or max(1, self._steps.num_steps // _EVALUATIONS)

    @property
    def stops_early(self) -> bool:
        """Whether there were as many evaluations without improvement as end the run."""
        patience = self._config.train.early_stopping_patience
        patience = _PATIENCE if patience == "auto" else patience
        return patience is not None and self.best.num_evaluations_without_improvement >= patience

    def measure_baseline(self, prompt: BatchPrompt) -> tuple[dict[str, Any], str]:
        """Measures what later evaluations are compared with; the untrained prompt may turn out to be the best.

        Returns:
            The log's record before the first step, and a phrase for people.
        """
        rows, task = self._sample(self._inputs.rows["validation"]), self._config.data.task
        sides = sides_of(self._inputs.backbone, prompt, task, rows)
        scores = {name: self._evaluator.metrics(side) for name, side in sides.items()}
        record = first_record(scores[WITH], scores.get(WITHOUT))
        self.baseline = Baseline.of_log([{"step": 0, **record}], self._measure)
        self._is_best(0, scores[WITH])
        return record, f"validation of the untrained prompt: {scores[WITH]}{self.baseline.words_alone}"

    def validate(self, step: int, prompt: BatchPrompt) -> tuple[dict[str, Any], str, bool]:
        """Evaluates the prompt as it is after a step.

        Returns:
            The log's record, a phrase for people, and whether the prompt is the best so far.
        """
        examples = self._sample(self._inputs.examples["validation"])
        metrics = self._evaluator.metrics(Side(prompt, examples, self._inputs.coder.label_ids))
        record = {f"eval_{key}": value for key, value in metrics.as_dict().items()}
        return record, f"validation {metrics}{self.baseline}", self._is_best(step, metrics)

    @property
    def _measure(self) -> Literal["accuracy", "loss"]:
        return "accuracy" if self._config.data.task.is_classification else "loss"

    def _sample(self, rows: Sequence[AnyRow]) -> list[AnyRow]:
        return validation_sample(rows, self._config.train, self.eval_steps, self._steps.batches_per_step)

    def _is_best(self, step: int, metrics: Metrics) -> bool:
        metric = self._config.train.metric_for_best_model
        if metric == "loss" or not self._config.data.task.is_classification:
            return self.best.is_improved_by(step, metrics.loss, metrics.loss)
        tolerance = metrics.standard_error if metric == "auto" else 0.0
        return self.best.is_improved_by(step, -metrics.accuracy, metrics.loss, tolerance)
