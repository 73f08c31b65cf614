"""What a classifier and a writer have in common: they train a prompt on rows from memory, and keep it.

Knows nothing of labels or of how answers are asked for.
"""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, Self

import numpy

from ptuning.config import RunConfig, dotted
from ptuning.data import Rows, Template, records, rows_of
from ptuning.errors import ConfigError, DataError, PTuningError
from ptuning.estimators.parameters import Parameters
from ptuning.evaluation import WITH, Evaluation, evaluate_rows, results_report
from ptuning.inference import PromptedLM
from ptuning.inspection import Report, inspect
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt
from ptuning.training import Interrupted, train


class Evaluated(dict[str, Evaluation]):
    """An evaluation: side -> what was measured, with the prompt and with the same words without it."""

    def __init__(self, sides: Mapping[str, Evaluation], labels: Sequence[str]) -> None:
        super().__init__(sides)
        self.labels = tuple(labels)
        """The labels' names; none where answers are written."""

    def report(self) -> str:
        """For people: how both sides compare, then precision, recall and confusion of each label."""
        return "\n".join(results_report(self, self.labels))

    def as_dict(self) -> dict[str, Any]:
        """The metrics of each side as plain data."""
        return {name: each.metrics.as_dict(self.labels) for name, each in self.items()}

    def __str__(self) -> str:
        return self.report()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.report())}</pre>"


class PromptEstimator(Parameters):
    """A frozen base model and a prompt that is trained for it.

    Args:
        base: A model directory, a hub model's name, or a loaded `Backbone`.
        template: The words of a row, with columns such as `{text}`; without a slot such as `{prompt:20}`, the virtual
            tokens stand in front.
        num_virtual_tokens: Virtual tokens, where the template has no slot.
        encoder: The prompt encoder, as `prompt.encoder` in a config.
        learning_rate: As `train.learning_rate`.
        max_steps: As `train.max_steps`.
        batch_size: As `train.per_device_train_batch_size`.
        validation_split: As `data.validation_split`.
        dtype: Precision of the base, as `model.dtype`.
        device: As `model.device`.
        seed: As `train.seed`.
        output_dir: Where the run's files are written; None: nothing is kept but the prompt, in memory.
        settings: Any other settings of `ptuning train`, dotted: `{"train.weight_decay": 0.01}`.
        verbose: Whether the plan, the progress and the evaluations of a fit are shown; warnings always are.
    """

    prompt_: SoftPrompt
    """The tuned prompt."""
    metrics_: dict[str, Any]
    """What the run measured, as in metrics.json."""
    lm_: PromptedLM
    """The base model with the tuned prompt."""

    def __init__(
        self,
        base: str | Path | Backbone,
        template: str | None = None,
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
        self.base, self.template, self.num_virtual_tokens, self.encoder = base, template, num_virtual_tokens, encoder
        self.learning_rate, self.max_steps, self.batch_size = learning_rate, max_steps, batch_size
        self.validation_split, self.dtype, self.device, self.seed = validation_split, dtype, device, seed
        self.output_dir, self.settings, self.verbose = output_dir, settings, verbose

    def _settings(self) -> dict[str, Any]:
        """The other settings, by their dotted keys."""
        return dotted(RunConfig, self.settings or {})

    def _backbone(self) -> Backbone:
        """The base, loaded as the parameters and settings say."""
        own = {key: value for key, value in self._settings().items() if key.startswith("model.")}
        if isinstance(self.base, Backbone):
            if own:
                raise ConfigError(f"{', '.join(own)} with a loaded model", "a model's name", "Load it so yourself")
            return self.base
        given = {"model.name_or_path": str(self.base), "model.dtype": self.dtype, "model.device": self.device, **own}
        of_no_run = {"data.template": "{prompt:1}", "train.output_dir": "."}  # needed in every config
        config = RunConfig.from_settings({**given, **of_no_run}, type(self).__name__)
        return Backbone.from_pretrained(**dataclasses.asdict(config.model))

    def _train(
        self,
        backbone: Backbone,
        task: Mapping[str, Any],
        rows: Mapping[str, Rows],
        on_step: Callable[[Any], None] | None,
        on_evaluate: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        """Trains, and keeps what comes out.

        Args:
            backbone: The base.
            task: The settings of the section `data`.
            rows: Split -> rows.
            on_step: As in `train`.
            on_evaluate: As in `train`.
        """
        with self._directory() as directory:
            settings = {
                "model.name_or_path": backbone.name,
                "prompt.encoder": self.encoder,
                **{f"data.{key}": value for key, value in task.items()},
                "data.validation_split": self.validation_split,
                "train.output_dir": str(directory),
                "train.learning_rate": self.learning_rate,
                "train.max_steps": self.max_steps,
                "train.per_device_train_batch_size": self.batch_size,
                "train.seed": self.seed,
                **self._settings(),
            }
            config = RunConfig.from_settings(
                {key: _plain(value) for key, value in settings.items()}, type(self).__name__
            )
            result = train(
                config,
                rows=rows,
                backbone=backbone,
                on_step=on_step,
                on_evaluate=on_evaluate,
                verbose=self.verbose,
            )
        self._keep(backbone, result.prompt)
        self.metrics_ = result.metrics

    @contextmanager
    def _directory(self) -> Iterator[str | Path]:
        """Where the run's files are written."""
        if self.output_dir:
            yield self.output_dir
            return
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("several processes without output_dir", "a directory that all see", "Give output_dir")
        with tempfile.TemporaryDirectory() as directory:
            try:
                yield directory
            except Interrupted:
                raise Interrupted("interrupted; nothing is kept without output_dir") from None

    def _keep(self, backbone: Backbone, prompt: SoftPrompt) -> None:
        self.prompt_, self.lm_ = prompt, PromptedLM(backbone, {"prompt": prompt})

    def _require_fitted(self) -> None:
        if not hasattr(self, "prompt_"):
            raise NotFittedError(f"a {type(self).__name__} that is not fitted", "a fitted one", "Call fit first")

    def _fitted_column(self) -> str | None:
        """The column with the answers that was fitted or loaded; None where there is none yet."""
        if not hasattr(self, "prompt_"):
            return None
        names = Template.parse(self.lm_.task("prompt").answer).field_names
        return names[0] if len(names) == 1 else None

    def _text_column(self) -> str:
        """The column of a row that is a text alone: the template's, if it has one column."""
        template = self.template
        if template is None and hasattr(self, "prompt_") and self.prompt_.task:
            template = self.prompt_.task.template
        names = Template.parse(template or "").field_names
        return names[0] if len(names) == 1 else "text"

    def _answered(self, rows: Rows, answers: Any) -> list[dict[str, Any]]:
        """Rows with their answers in the prompt's own column, where they are looked for if none are given."""
        self._require_fitted()
        column = self._fitted_column()
        if column is None:
            raise ConfigError(
                f"the answer {self.lm_.task('prompt').answer!r}", "one column", "Evaluate it with evaluate_rows"
            )
        return with_answers(rows, column if answers is None else answers, column, self._text_column())

    def _inspected(self, rows: Rows | None, answers: Any, **options: Any) -> Report:
        self._require_fitted()
        given = None if rows is None else self._answered(rows, answers)
        return inspect(self.prompt_, self.lm_.backbone, given, **options)

    def _evaluated(self, rows: Rows, answers: Any) -> Evaluated:
        rows = self._answered(rows, answers)
        task, backbone = self.lm_.task("prompt"), self.lm_.backbone
        checked = rows_of(rows, "row", task.columns)
        found = evaluate_rows(backbone, self.prompt_.on(backbone.device), task, checked, with_baseline=True)
        return Evaluated(found, tuple(task.verbalizer or ()))

    def save(self, directory: str | Path) -> Path:
        """Writes the prompt's directory, which the command line reads too; replaces an older one."""
        self._require_fitted()
        return self.prompt_.save(directory)

    @classmethod
    def load(cls, directory: str | Path, base: str | Path | Backbone | None = None, **parameters: Any) -> Self:
        """Reads what `save` wrote.

        Args:
            directory: The prompt's directory, or its name on the hub.
            base: The base model; None: the one that the prompt names.
            parameters: Others of the estimator, such as dtype and device.

        Raises:
            PromptError: For a directory that holds no such prompt, and for another base.
        """
        prompt = SoftPrompt.from_pretrained(directory)
        cls._require_own(prompt, Path(directory))
        found = cls(base or prompt.base_name or "", **{**cls._parameters_of(prompt), **parameters})
        found._keep(found._backbone(), prompt)
        return found

    @classmethod
    def _parameters_of(cls, prompt: SoftPrompt) -> dict[str, Any]:
        """The parameters that a prompt was tuned with, for another fit."""
        assert prompt.task is not None
        chat = {"settings": {"data.chat_template": True}} if prompt.task.chat_template else {}
        return {"template": prompt.task.template, **chat}

    @classmethod
    def _require_own(cls, prompt: SoftPrompt, directory: Path) -> None:
        """Raises `PromptError` for a prompt that the estimator cannot answer with."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """All but the base model, which is loaded again by its name and in its precision."""
        state = {key: value for key, value in vars(self).items() if key != "lm_"}
        if isinstance(self.base, Backbone):
            state |= {"base": self.base.name, "dtype": f"{self.base.dtype}".removeprefix("torch.")}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if "prompt_" in state:
            self._keep(self._backbone(), self.prompt_)

    def __copy__(self) -> Self:
        """The same estimator once more; its base model is shared."""
        made = type(self).__new__(type(self))
        vars(made).update(vars(self))
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """As `copy`: what is fitted is never changed, only replaced."""
        return self.__copy__()

    def _repr_html_(self) -> str:
        is_fitted = hasattr(self, "prompt_")
        told = "fitted" if is_fitted else "not fitted"
        results = self.metrics_["results"] if hasattr(self, "metrics_") else {}
        scores = (
            f", accuracy {results[WITH]['accuracy']:.3f} on {self.metrics_['training']['results_of']}"
            if results
            else ""
        )
        return f"<code>{escape(repr(self))}</code> <small>{told}{escape(scores)}</small>"


class NotFittedError(PTuningError, ValueError, AttributeError):
    """An estimator that is used before it is fitted; scikit-learn's own is a ValueError and an AttributeError too."""


def _plain(value: Any) -> Any:
    """A numpy number, such as those of a search over parameters, as Python's own."""
    return value.item() if isinstance(value, numpy.generic) else value


def with_answers(rows: Rows, answers: Any, column: str, text_column: str = "text") -> list[dict[str, Any]]:
    """The rows as mappings, each with its answer.

    Args:
        rows: The rows.
        answers: One for each; or the name of the column of the rows that holds them.
        column: The column to put them in.
        text_column: The column of a row that is a text alone.

    Raises:
        DataError: For another number of answers than of rows, or a row without its answer.
    """
    found = [{text_column: each} if isinstance(each, str) else dict(each) for each in records(rows)]
    if not isinstance(answers, str):
        if not isinstance(answers, Iterable):
            raise DataError(f"answers {answers!r}", "one for each row, or the name of their column", "Give these")
        given = list(answers)
        if len(given) != len(found):
            raise DataError(f"{len(given)} answers for {len(found)} rows", "as many", "Give one for each row")
        return [{**row, column: answer} for row, answer in zip(found, given, strict=True)]
    missing = [i for i, row in enumerate(found) if answers not in row]
    if missing:
        raise DataError(f"row {missing[0]} has no column {answers!r}", "the answers", "Give them, or name their column")
    return [{**row, column: row[answers]} for row in found]
