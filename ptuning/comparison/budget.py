"""What fits into a budget of time: steps of a training, and alternatives that are tried in turn.

Knows nothing of what is trained or tried.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from statistics import median
from typing import TypeVar

from ptuning.comparison.protocol import Job

TRIAL_STEPS = 8
"""Steps whose pace is measured; they are not kept."""
MOST_EPOCHS = 30
"""Passes over the training rows, however long the budget is."""
_WARM_STEPS = 2

Tried = TypeVar("Tried")


def steps_within(
    job: Job, place: int, steps_per_epoch: int, seconds_a_step: float, evaluate: Callable[[], object], others: int = 0
) -> int:
    """How many steps of one of a way's trainings fit into what is left of its share of the budget.

    Evaluations, and all that was done since fitting began, take their time from it.

    Args:
        job: With a budget.
        place: Which of the trainings it is, one a rate, counted from 0.
        steps_per_epoch: Steps that read every training row once.
        seconds_a_step: As in `pace`.
        evaluate: Reads the validation rows once, to measure how long that takes.
        others: Evaluations beside those that keep the best step.

    Returns:
        Steps: 1 or more, and at most those of `MOST_EPOCHS`.
    """
    effort, started = job.effort, time.perf_counter()
    assert effort.seconds is not None
    evaluate()
    evaluations = (effort.num_evaluations + others) * (time.perf_counter() - started)
    share = effort.seconds / effort.num_rates
    left = min(share, (effort.seconds - job.seconds_used) / (effort.num_rates - place)) - evaluations
    return max(1, min(int(left / seconds_a_step), MOST_EPOCHS * steps_per_epoch))


def pace(steps: Iterable[object]) -> float:
    """Seconds a step, the median of `TRIAL_STEPS` but for the first, which are slower.

    Args:
        steps: Makes a step each time that it is asked for the next item.
    """
    return pace_of([time.perf_counter() for _ in steps])


def pace_of(ends: Iterable[float]) -> float:
    """As `pace`, from the times at which steps ended."""
    return median([after - before for before, after in pairwise(ends)][_WARM_STEPS - 1 :])


def tries_within(job: Job, tries: Iterable[Tried]) -> Iterator[Tried]:
    """The first of the tries, and each other for which there is time if it takes as long as the longest so far.

    Args:
        job: With or without a budget, which counts from when fitting began; without one all are tried.
        tries: What to try, in order; the time until the next one is asked for is that of a try.
    """
    seconds, longest = job.effort.seconds, 0.0
    for each in tries:
        before = job.seconds_used
        if seconds is not None and longest and before + longest > seconds:
            return
        yield each
        longest = max(longest, job.seconds_used - before)
