"""Makes a training's steps, and keeps what the validation rows liked best; the same for every way that makes steps.

Knows nothing of what is trained.
"""

from collections.abc import Callable

from torch import Tensor

from ptuning.training import Loop


def kept_best(loop: Loop, num_evaluations: int, accuracy: Callable[[], float]) -> tuple[float, int]:
    """Makes all steps, and brings the module back to where its accuracy was highest, the last of equals.

    Args:
        loop: What makes the steps.
        num_evaluations: How often the accuracy is asked for on the way.
        accuracy: The module's accuracy on validation rows, as it is now.

    Returns:
        The highest accuracy, and its step.
    """
    best, best_step, kept = -1.0, 0, dict[str, Tensor]()
    every = max(1, loop.settings.max_steps // num_evaluations)
    for record in loop.steps():
        if record.step % every and record.step != loop.settings.max_steps:
            continue
        found = accuracy()
        if found >= best:
            best, best_step = found, record.step
            kept = {name: each.detach().clone() for name, each in loop.module.state_dict().items()}
    loop.module.load_state_dict(kept)
    return best, best_step
