"""`PromptClassifier`: learns labels of texts or of rows with several columns."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy
from numpy.typing import NDArray

from ptuning.data import Rows, template_for, verbalizer_for, with_slot
from ptuning.errors import DataError, PromptError
from ptuning.estimators.estimator import Evaluated, PromptEstimator, with_answers
from ptuning.inspection import Report
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt

LABEL = "label"


class PromptClassifier(PromptEstimator):
    """Classifies with a soft prompt; a scikit-learn classifier of texts.

    `clone`, `cross_val_score`, `GridSearchCV` and pipelines take it. What is fitted ends with an underscore.

    Args:
        base: A model directory, a hub model's name, or a loaded `Backbone`.
        template: The words of a row, as in `PromptEstimator`; None: all columns, then `Label:`.
        verbalizer: Label -> the text that stands for it; None: the labels themselves. Labels without rows are left out.
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
        settings: Any other settings of `ptuning train`, dotted: `{"train.eval_steps": 50}`.
        verbose: Whether the plan, the progress and the evaluations of a fit are shown; warnings always are.
    """

    classes_: NDArray[Any]
    """The labels, sorted; the columns of `predict_proba`."""

    def __init__(
        self,
        base: str | Path | Backbone,
        template: str | None = None,
        verbalizer: Mapping[Any, str] | None = None,
        *,
        num_virtual_tokens: int = 20,
        encoder: str = "embedding",
        learning_rate: float | str = "auto",
        max_steps: int | None = None,
        batch_size: int = 8,
        validation_split: float = 0.2,
        dtype: str = "auto",
        device: str = "auto",
        seed: int = 0,
        output_dir: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(
            base,
            template,
            num_virtual_tokens=num_virtual_tokens,
            encoder=encoder,
            learning_rate=learning_rate,
            max_steps=max_steps,
            batch_size=batch_size,
            validation_split=validation_split,
            dtype=dtype,
            device=device,
            seed=seed,
            output_dir=output_dir,
            settings=settings,
            verbose=verbose,
        )
        self.verbalizer = verbalizer

    def fit(
        self,
        X: Rows,
        y: Any = None,
        *,
        validation: tuple[Rows, Any] | None = None,
        on_step: Callable[[Any], None] | None = None,
        on_evaluate: Callable[[dict[str, Any]], None] | None = None,
    ) -> Self:
        """Trains a prompt.

        Args:
            X: Texts; or rows with columns, as mappings, a data frame or a data set.
            y: A label for each, or the name of the column of X that holds them; None: `label`, or the column of the
                prompt that was loaded.
            validation: Rows and labels that choose the best checkpoint; None: some of X are set aside.
            on_step: As in `ptuning.train`.
            on_evaluate: As in `ptuning.train`.

        Raises:
            PTuningError: As `ptuning.train`, and for labels that are one, or that look alike.
        """
        y = (self._fitted_column() or LABEL) if y is None else y
        column = y if isinstance(y, str) else LABEL
        rows = with_answers(X, y, column, self._text_column())
        classes = _classes([row[column] for row in rows])
        keys = [str(each) for each in classes]
        if len(keys) < 2:
            raise DataError(
                f"{len(rows)} rows with {len(keys)} label", "two labels or more", "Add rows of another label"
            )
        shown = [name for name in rows[0] if name != column]
        _require_hidden(rows, column, shown if self.template is None else [])
        words = {str(label): text for label, text in (self.verbalizer or {}).items() if str(label) in keys}
        backbone = self._backbone()
        task = {
            "template": self._template(shown),
            "answer": f"{{{column}}}",
            "verbalizer": words or verbalizer_for(keys, backbone.tokenizer),
        }
        given = {"train": rows}
        if validation is not None:
            given["validation"] = with_answers(*validation, column, self._text_column())
        self._train(backbone, task, given, on_step, on_evaluate)
        training = {**self.prompt_.training, "classes": classes}
        self._keep(backbone, dataclasses.replace(self.prompt_, training=training))
        return self

    def _template(self, columns: list[str]) -> str:
        if self.template is None:
            return template_for(columns, self.num_virtual_tokens)
        return with_slot(self.template, self.num_virtual_tokens)

    def predict_proba(self, X: Rows) -> NDArray[numpy.float64]:
        """The probability of each label, `[N, C]`; the columns are those of `classes_`.

        Args:
            X: Texts or rows.
        """
        self._require_fitted()
        answers, keys = self.lm_.classify(X), [str(each) for each in self.classes_.tolist()]
        return numpy.array([[each.probabilities[key] for key in keys] for each in answers]).reshape(-1, len(keys))

    def predict(self, X: Rows) -> NDArray[Any]:
        """The most likely label of each row.

        Args:
            X: Texts or rows.
        """
        best_N = self.predict_proba(X).argmax(axis=1)
        found: NDArray[Any] = self.classes_[best_N]
        return found

    def score(self, X: Rows, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy.

        Args:
            X: Texts or rows.
            y: A label for each, or the name of the column of X that holds them; None: the column that was fitted.
            sample_weight: What each row counts; None: 1.
        """
        rows = self._answered(X, y)
        found = [str(each) for each in self.predict(rows).tolist()]
        is_right = [own == str(row[self._column]) for own, row in zip(found, rows, strict=True)]
        return float(numpy.average(is_right, weights=sample_weight))

    def evaluate(self, X: Rows, y: Any = None) -> Evaluated:
        """Measures the prompt, beside the same words without it.

        Args:
            X: Texts or rows.
            y: As in `score`.
        """
        return self._evaluated(X, y)

    def inspect(self, X: Rows | None = None, y: Any = None, **options: Any) -> Report:
        """Says what the prompt decodes to, and how far that can be believed.

        Args:
            X: Texts or rows on which the verdict rests; None: nothing is judged.
            y: As in `score`.
            options: As in `ptuning.inspect`.
        """
        return self._inspected(X, y, **options)

    @property
    def _column(self) -> str:
        return self.lm_.task("prompt").label_column

    def _keep(self, backbone: Backbone, prompt: SoftPrompt) -> None:
        super()._keep(backbone, prompt)
        assert prompt.task is not None
        self.classes_ = numpy.asarray(prompt.training.get("classes", list(prompt.task.verbalizer or ())))

    @classmethod
    def _parameters_of(cls, prompt: SoftPrompt) -> dict[str, Any]:
        assert prompt.task is not None
        return {**super()._parameters_of(prompt), "verbalizer": prompt.task.verbalizer}

    @classmethod
    def _require_own(cls, prompt: SoftPrompt, directory: Path) -> None:
        if prompt.task is None or not prompt.task.is_classification:
            raise PromptError(f"{directory}, a prompt without labels", "a classifier's", "Load it with PromptGenerator")

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "prompt_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
        )


def _classes(labels: Sequence[Any]) -> list[Any]:
    """The labels, each once, sorted; raises `DataError` for a row without one."""
    missing = [i for i, label in enumerate(labels) if label is None or label != label]  # a missing number is no number
    if missing:
        told = f"{len(missing):,} rows without a label, first of them row {missing[0]}"
        raise DataError(told, "a label for each row", "Remove these rows")
    found: list[Any] = numpy.unique(numpy.asarray(labels)).tolist()
    return found


def _require_hidden(rows: Sequence[Mapping[str, Any]], column: str, shown: Sequence[str]) -> None:
    """Raises `DataError` where a column that is to be shown tells every label."""
    for name in shown:
        if all(str(row.get(name)) == str(row[column]) for row in rows):
            raise DataError(
                f"labels that stand in the rows too, in the column {name!r}",
                "rows that do not show the label",
                f"Give the column's name in place of the labels: fit(rows, {name!r})",
            )
