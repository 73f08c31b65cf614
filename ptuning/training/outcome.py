"""Says at the end of a run whether its prompt is shown to be better than the words alone, and what to do if not.

Knows nothing of files or of how rows are scored.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptuning.data import Example
from ptuning.evaluation import WITH, WITHOUT, Comparison, Metrics, RowScores
from ptuning.training.evaluator import Evaluator, Side

_MOST_FITTED = 200  # training rows that are read to see whether the prompt fits them

_FEW = 50  # rows, by which little can be shown


_FAR = 10.0  # times the automatic rate, or a part of it


@dataclass(frozen=True)
class Rate:
    """A learning rate beside the automatic one."""

    peak: float
    """The highest of the run."""
    automatic: float
    """What `train.learning_rate: auto` would be."""

    @property
    def other(self) -> str:
        """Which to try next."""
        if 1 / _FAR <= self.peak / self.automatic <= _FAR:
            return f"a train.learning_rate above or below {self.peak:.2g}"
        return f"train.learning_rate: auto ({self.automatic:.2g} here, and {self.peak:.2g} is far from it)"


@dataclass(frozen=True)
class Outcome:
    """What a finished prompt was measured at."""

    results: Mapping[str, Metrics]
    """Name -> metrics: of the words alone, where there are any, and of the prompt."""
    compared: dict[str, Any] | None
    """How the two compare, and under `warning` a text with a remedy where the prompt is not shown to be better; None
    where there are no words alone."""
    scores: RowScores
    """The prompt's scores of all rows."""


def measured(
    evaluator: Evaluator,
    sides: Mapping[str, Side],
    train: Sequence[Example],
    split: str,
    rate: Rate,
    seed: int,
) -> Outcome:
    """Measures a finished prompt beside the words alone; every process must call it.

    Args:
        evaluator: What reads rows.
        sides: The words alone, where there are any, and the prompt, on the rows of the final results.
        train: The training rows.
        split: The name of the rows of the final results.
        rate: The learning rate that the prompt was trained with.
        seed: Seed of the choice of training rows.
    """
    scores = {name: evaluator.scores(side, f"{split} rows, {name}") for name, side in sides.items()}
    results = {name: evaluator.metrics_of(side, scores[name]) for name, side in sides.items()}
    compared = None
    if WITHOUT in sides:
        comparison = evaluator.comparison_of(scores[WITH], scores[WITHOUT], bool(sides[WITH].label_ids))
        compared = {**comparison.as_dict(), "warning": None}
        if not comparison.is_better:
            sample = random.Random(seed).sample(train, min(_MOST_FITTED, len(train)))
            fit = evaluator.metrics(Side(sides[WITH].prompt, sample, sides[WITH].label_ids), f"training rows, {WITH}")
            compared["warning"] = warning(comparison, fit, results[WITHOUT], rate)
    return Outcome(results, compared, evaluator.together(scores[WITH]))


def warning(comparison: Comparison, fit: Metrics, without: Metrics, rate: Rate) -> str:
    """What to tell where the prompt is not shown to be better.

    Args:
        comparison: With and without the prompt on the rows of the final results.
        fit: The prompt on training rows.
        without: The words alone on the rows of the final results.
        rate: The learning rate that the prompt was trained with.
    """
    return (
        f"the tuned prompt is not shown to be better than the same words without it: {comparison}. "
        f"{_remedy(comparison, fit, without, rate)}."
    )


def _remedy(comparison: Comparison, fit: Metrics, without: Metrics, rate: Rate) -> str:
    rows = f"{int(comparison.num_rows):,} rows are too few to show it: give more in data.test"
    if comparison.is_classification:
        is_shown = fit.interval[0] > without.accuracy
        score = f"accuracy {fit.accuracy:.3f} against {without.accuracy:.3f} of the words"
    else:
        is_shown, score = fit.loss < without.loss, f"loss {fit.loss:.3f} against {without.loss:.3f} of the words"
    if not is_shown:
        words = "other label words (data.verbalizer)" if comparison.is_classification else "another answer"
        settings = f"{rate.other}, more train.max_steps, {words}"
        few = f"It is above them here, but {rows}. " if comparison.gain > 0 and comparison.num_rows < _FEW else ""
        return f"{few}Its training rows do not show it either ({score}): try {settings}, more rows or another template"
    if comparison.gain > 0:
        return (
            f"Its training rows show it ({score}), so it may be better here too, but {rows}, or try more "
            "train.max_steps: its loss may still fall"
        )
    return (
        f"Its training rows show it ({score}) but others do not: give more training rows, or try fewer "
        f"train.max_steps, a train.learning_rate below {rate.peak:.2g} or another template"
    )
