"""Says at the end of a run whether its prompt is shown to be better than the words alone, and what to do if not.

Knows nothing of files or of how rows are scored.
"""

import random
from collections.abc import Sequence
from typing import Any

from ptuning.data import Example
from ptuning.evaluation import WITH, WITHOUT, Comparison, Metrics
from ptuning.training.evaluator import Evaluator, Side

_MOST_FITTED = 200  # training rows that are read to see whether the prompt fits them


def compared(
    evaluator: Evaluator, sides: dict[str, Side], without: Metrics, train: Sequence[Example], split: str, seed: int
) -> dict[str, Any]:
    """Compares the prompt with the words alone, row by row; every process must call it.

    Args:
        evaluator: What reads rows.
        sides: The prompt and the words alone on the rows of the final results.
        without: The words alone, measured on those rows.
        train: The training rows.
        split: The name of the rows of the final results.
        seed: Seed of the choice of training rows.

    Returns:
        What metrics.json holds: the comparison, and under `warning` a text with a remedy, or None where the prompt is
        shown to be better.
    """
    comparison = evaluator.comparison(sides[WITH], sides[WITHOUT], f"{split} rows, row by row")
    if comparison.is_better:
        return {**comparison.as_dict(), "warning": None}
    sample = random.Random(seed).sample(train, min(_MOST_FITTED, len(train)))
    fit = evaluator.metrics(Side(sides[WITH].prompt, sample, sides[WITH].label_ids))
    return {**comparison.as_dict(), "warning": warning(comparison, fit, without)}


def warning(comparison: Comparison, fit: Metrics, without: Metrics) -> str:
    """What to tell where the prompt is not shown to be better.

    Args:
        comparison: With and without the prompt on the rows of the final results.
        fit: The prompt on training rows.
        without: The words alone on the rows of the final results.
    """
    return (
        f"the tuned prompt is not shown to be better than the same words without it: {comparison}. "
        f"{_remedy(comparison, fit, without)}."
    )


def _remedy(comparison: Comparison, fit: Metrics, without: Metrics) -> str:
    if comparison.is_classification:
        is_fitted, score = fit.interval[0] > without.accuracy, f"accuracy {fit.accuracy:.3f}"
    else:
        is_fitted, score = fit.loss < without.loss, f"loss {fit.loss:.3f} against {without.loss:.3f}"
    if not is_fitted:
        settings = "a higher or lower train.learning_rate, more train.max_steps"
        return f"It does not fit its training rows either ({score}): try {settings}, more rows or another template"
    if comparison.gain > 0:
        rows = f"{int(comparison.num_rows):,} rows are too few to show it"
        return f"It fits its training rows ({score}) and may be better here too, but {rows}: give more in data.test"
    return (
        f"It fits its training rows ({score}) but not others: give more training rows, or try fewer train.max_steps, "
        "a lower train.learning_rate or another template"
    )
