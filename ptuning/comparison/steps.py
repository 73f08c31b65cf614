"""Makes a training's steps, and keeps what the validation rows liked best; the same for every way that makes steps.

Knows nothing of what is trained.
"""

import math
from collections.abc import Callable

from torch import Tensor

from ptuning.training import Loop


def kept_best(loop: Loop, num_evaluations: int, score: Callable[[], float]) -> tuple[float, int]:
    """Makes all steps, and brings the module back to where its score was highest, the last of equals.

    Args:
        loop: What makes the steps.
        num_evaluations: How often the score is asked for on the way.
        score: The module's score on validation rows, as it is now.

    Returns:
        The highest score, and its step.
    """
    best, best_step, kept = -math.inf, 0, dict[str, Tensor]()
    every = max(1, loop.settings.max_steps // num_evaluations)
    for record in loop.steps():
        if record.step % every and record.step != loop.settings.max_steps:
            continue
        found = score()
        if found >= best:
            best, best_step = found, record.step
            kept = {name: each.detach().clone() for name, each in loop.module.state_dict().items()}
    loop.module.load_state_dict(kept)
    return best, best_step
