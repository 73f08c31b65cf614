"""Makes a training's steps, and keeps what the validation rows liked best; the same for every way that makes steps.

Knows nothing of what is trained.
"""

import math
from collections.abc import Callable

from torch import Tensor

from ptuning.comparison.budget import TRIAL_STEPS, pace, steps_within
from ptuning.comparison.protocol import Job
from ptuning.errors import TrainingError
from ptuning.training import Loop, PromptSteps


def steps_of(
    job: Job, place: int, steps: PromptSteps, loop: Callable[[float, int], Loop], score: Callable[[], float]
) -> int:
    """How many steps a training makes: the config's, or what fits into the budget.

    Args:
        job: With or without a budget.
        place: Which of the way's trainings it is, counted from 0.
        steps: The rows of its steps.
        loop: Gives what makes steps, of a peak learning rate and a number of steps.
        score: As in `kept_best`.
    """
    if job.effort.seconds is None:
        return steps.num_steps
    still = loop(0.0, TRIAL_STEPS)  # a rate of 0 changes nothing
    return steps_within(job, place, steps.num_per_epoch, pace(still.steps()), score)


def kept_best(loop: Loop, num_evaluations: int, score: Callable[[], float]) -> tuple[float, int]:
    """Makes all steps, and brings the module back to where its score was highest, the last of equals.

    Args:
        loop: What makes the steps.
        num_evaluations: How often the score is asked for on the way, at most.
        score: The module's score on validation rows, as it is now.

    Returns:
        The highest score, and its step.

    Raises:
        TrainingError: Where no score is a number.
    """
    best, best_step, kept = -math.inf, 0, dict[str, Tensor]()
    every = math.ceil(loop.settings.max_steps / num_evaluations)
    for record in loop.steps():
        if record.step % every and record.step != loop.settings.max_steps:
            continue
        found = score()
        if found >= best:
            best, best_step = found, record.step
            kept = {name: each.detach().clone() for name, each in loop.module.state_dict().items()}
    if not kept:
        raise TrainingError("no finite validation score", "a number at some step", "Set model.dtype: float32")
    loop.module.load_state_dict(kept)
    return best, best_step
