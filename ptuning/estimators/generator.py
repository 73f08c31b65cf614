"""`PromptGenerator`: learns to write an answer to each row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from ptuning.data import Rows, Template, with_slot
from ptuning.errors import ConfigError, PromptError
from ptuning.estimators.estimator import Evaluated, PromptEstimator, with_answers
from ptuning.inspection import Report
from ptuning.prompts import SoftPrompt

ANSWER = "answer"


class PromptGenerator(PromptEstimator):
    """Writes with a soft prompt.

    Args:
        base: A model directory, a hub model's name, or a loaded `Backbone`.
        template: The words of a row, with columns such as `{text}`; needed. Without a slot such as `{prompt:20}`, the
            virtual tokens stand in front.
        num_virtual_tokens: Virtual tokens, where the template has no slot.
        encoder: The prompt encoder.
        learning_rate: Peak learning rate.
        max_steps: Optimizer steps.
        batch_size: Rows a step.
        validation_split: Share of the rows that is set aside.
        dtype: Precision of the base.
        device: Where it runs.
        seed: Seed of the initialisation and the order of rows.
        output_dir: Where the run's files are written.
        settings: Any other settings of `ptuning train`, dotted: `{"data.max_length": 256}`.
        verbose: Whether the plan, the progress and the evaluations of a fit are shown; warnings always are.
    """

    def fit(
        self,
        rows: Rows,
        answer: Any = None,
        *,
        validation: Rows | None = None,
        on_step: Callable[[Any], None] | None = None,
        on_evaluate: Callable[[dict[str, Any]], None] | None = None,
    ) -> Self:
        """Trains a prompt.

        Args:
            rows: Rows with the template's columns; or texts, for a template with one column.
            answer: The name of the column with the answers, or an answer for each row; None: `answer`, or the column of
                the prompt that was loaded.
            validation: Rows with answers in that column, which choose the best checkpoint; None: some are set aside.
            on_step: As in `ptuning.train`.
            on_evaluate: As in `ptuning.train`.

        Raises:
            PTuningError: As `ptuning.train`, and without a template.
        """
        if self.template is None:
            raise ConfigError(
                "a PromptGenerator without a template", "the words of a row", 'Give one, such as "{text}"'
            )
        answer = (self._fitted_column() or ANSWER) if answer is None else answer
        column = answer if isinstance(answer, str) else ANSWER
        template = with_slot(self.template, self.num_virtual_tokens)
        space = "" if self._settings().get("data.chat_template") else _space_after(template)
        given = {"train": with_answers(rows, answer, column, self._text_column())}
        if validation is not None:
            given["validation"] = with_answers(validation, column, column, self._text_column())
        task = {"template": template, "answer": f"{space}{{{column}}}"}
        self._train(self._backbone(), task, given, on_step, on_evaluate)
        return self

    def generate(self, rows: Rows, **options: Any) -> Any:
        """Writes an answer to each row, or streams them: as `PromptedLM.generate`.

        Args:
            rows: Rows or texts.
            options: Those of `PromptedLM.generate`, such as max_new_tokens and stream.
        """
        self._require_fitted()
        written = self.lm_.generate(rows, **options)
        return written if options.get("stream") else [str(each).strip() for each in written]

    def predict(self, rows: Rows) -> list[str]:
        """The answers that greedy generation writes.

        Args:
            rows: Rows or texts.
        """
        found: list[str] = self.generate(rows)
        return found

    def evaluate(self, rows: Rows, answer: Any = None) -> Evaluated:
        """Measures the prompt, beside the same words without it.

        Args:
            rows: Rows or texts.
            answer: The name of the column with the answers, or an answer for each row; None: the fitted column.
        """
        return self._evaluated(rows, answer)

    def inspect(self, rows: Rows | None = None, answer: Any = None, **options: Any) -> Report:
        """Says what the prompt decodes to, and how far that can be believed.

        Args:
            rows: Rows on which the verdict rests; None: nothing is judged.
            answer: As in `evaluate`.
            options: As in `ptuning.inspect`.
        """
        return self._inspected(rows, answer, **options)

    @classmethod
    def _require_own(cls, prompt: SoftPrompt, directory: Path) -> None:
        if prompt.task is None or prompt.task.is_classification:
            raise PromptError(
                f"{directory}, a prompt with labels or no task", "a writer's", "Load it with PromptClassifier"
            )


def _space_after(template: str) -> str:
    """What stands between a template and an answer: a space, unless the template ends with one or has no text."""
    ending = Template.parse(template).ending
    return "" if ending is None or ending.endswith((" ", "\n", "\t")) else " "
