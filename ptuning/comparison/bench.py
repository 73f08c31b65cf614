"""What all ways are measured with: the base, the rows, the effort, the goal.

Knows nothing of any single way.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ptuning.comparison.goals import Goal, LabelGoal, TextGoal
from ptuning.comparison.parts import Part, PartDirectory
from ptuning.comparison.protocol import Effort, Job, some_of, turn_column
from ptuning.comparison.reading import in_turn, text_ids
from ptuning.config import ComparisonConfig, RunConfig
from ptuning.data import Row
from ptuning.errors import DataError, ModelError
from ptuning.model import Backbone
from ptuning.training import Inputs

_QUICK_ROWS = {"train": 500, "validation": 50, "test": 200}
_QUICK_STEPS = 60
_QUICK_EFFORT: dict[str, Any] = {
    "num_draws": 2,
    "demonstrations": (2, 4),
    "passages": (1, 2),
    "num_evaluations": 4,
    "num_timings": 1,
    "num_verdict_rows": 0,  # a verdict reads so many rows ten times: on a CPU that takes a minute
}


@dataclass(frozen=True)
class Bench:
    """What all ways are measured with."""

    backbone: Backbone
    """The frozen model."""
    config: RunConfig
    """The task, and how prompts are trained."""
    rows: Mapping[str, Sequence[Row]]
    """Split -> rows: train, validation and test."""
    effort: Effort
    """How much each way may try."""
    instruction: str | None
    """What a person would write."""
    goal: Goal
    """What is measured."""
    general_ids: Sequence[Sequence[int]]
    """A general text, in pieces, on which it is measured what is forgotten."""
    passages: Sequence[str] = ()
    """The passages of a person's documents."""
    save_weights: bool = False
    """Whether weights are saved that are changed in place."""

    @classmethod
    def of(cls, config: ComparisonConfig, inputs: Inputs, text: str, passages: Sequence[str] = ()) -> "Bench":
        """The bench of a config.

        Args:
            config: The comparison.
            inputs: What it is made with.
            text: The general text.
            passages: Those of the documents that it names.

        Raises:
            DataError: Without validation or test rows, or for a general text that cannot be used.
            ModelError: For texts to write with a model that cannot generate from embeddings.
        """
        for split in ("validation", "test"):
            if split not in inputs.rows:
                raise DataError(f"a comparison without {split} rows", "some", f"Give data.{split}")
        asked = config.compare
        rows, run = dict(inputs.rows), config.run
        effort = replace(effort_of(config), seconds=asked.budget_seconds)
        if asked.quick:
            rows = {split: some_of(own, _QUICK_ROWS[split]) for split, own in rows.items()}
            effort = replace(effort, **_QUICK_EFFORT)
            steps = min(run.train.max_steps or _QUICK_STEPS, _QUICK_STEPS)
            between = math.ceil(steps / effort.num_evaluations)
            run = replace(run, train=replace(run.train, max_steps=steps, eval_steps=between))
        return cls(
            backbone=inputs.backbone,
            config=run,
            rows=rows,
            effort=effort,
            instruction=asked.instruction,
            goal=_goal(inputs.backbone, run, rows),
            general_ids=text_ids(inputs.backbone, text),
            passages=passages,
            save_weights=asked.save_weights,
        )

    def job(self, part: Part, directory: PartDirectory) -> Job:
        """What a part is fitted with: fewer training rows come with as few validation rows, all labels in turn."""
        train, validation = self.rows["train"], self.rows["validation"]
        if part.num_train is not None:
            column = turn_column(self.config.data.task)
            train, validation = (in_turn(own, column, part.seed)[: part.num_train] for own in (train, validation))
        return Job(
            self.backbone,
            self.config,
            train,
            validation,
            part.seed,
            directory.work,
            self.effort,
            self.instruction,
            self.passages,
            self.save_weights,
        )


def effort_of(config: ComparisonConfig) -> Effort:
    """How much each way may try; train.eval_steps says for all ways when validation rows are read."""
    effort, most, settings = Effort(config.compare.rates), config.compare.demonstrations, config.train
    if most is not None:
        effort = replace(effort, demonstrations=tuple(dict.fromkeys(max(1, most // part) for part in (4, 2, 1))))
    if settings.max_steps is None or settings.eval_steps is None:
        return effort
    return replace(effort, num_evaluations=math.ceil(settings.max_steps / settings.eval_steps))


def _goal(backbone: Backbone, config: RunConfig, rows: Mapping[str, Sequence[Row]]) -> Goal:
    """Labels, or texts that end where the answers of training and validation rows do: test rows do not decide it."""
    task = config.data.task
    if task.is_classification:
        return LabelGoal(task)
    if not backbone.generates_from_embeddings:
        received = f"texts to write with {backbone.name}, which can start from ids only"
        raise ModelError(received, "a model that can start from embeddings", "Compare labels: set data.verbalizer")
    return TextGoal.of(backbone, task, [*rows["train"], *rows["validation"]])
