"""Training: a loop for any module, and the run that trains, validates and saves a prompt with it.

`loop` makes steps. `recipe` turns settings into steps and rates; `prompt_steps` is the work of a step for a prompt,
`backward` its gradient, `soft_targets` what a teacher says, `memory` how much is read at once. `inputs` loads model and
rows. `validator` measures the prompt as it trains (`evaluator`, `baseline`, `validation`), `outcome` judges it at the
end, and `curves` draws the run.
`run` puts these together; `run_directory`, `checkpoint` and `lock` keep its files.
Knows nothing of what a prompt means.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.training.backward import backward_in_parts as backward_in_parts
    from ptuning.training.distributed import accelerator_on as accelerator_on
    from ptuning.training.inputs import Given as Given
    from ptuning.training.inputs import Inputs as Inputs
    from ptuning.training.interrupts import Interrupted as Interrupted
    from ptuning.training.interrupts import raised_interrupts as raised_interrupts
    from ptuning.training.lock import DirectoryLock as DirectoryLock
    from ptuning.training.loop import Loop as Loop
    from ptuning.training.loop import LoopSettings as LoopSettings
    from ptuning.training.loop import StepWork as StepWork
    from ptuning.training.prompt_steps import PromptSteps as PromptSteps
    from ptuning.training.recipe import learning_rate as learning_rate
    from ptuning.training.recipe import loop_settings as loop_settings
    from ptuning.training.results import TrainResult as TrainResult
    from ptuning.training.run import train as train
    from ptuning.training.run import train_with as train_with
    from ptuning.training.run_directory import RunDirectory as RunDirectory
    from ptuning.training.soft_targets import SoftTargets as SoftTargets

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "backward": ("backward_in_parts",),
        "distributed": ("accelerator_on",),
        "inputs": ("Given", "Inputs"),
        "interrupts": ("Interrupted", "raised_interrupts"),
        "lock": ("DirectoryLock",),
        "loop": ("Loop", "LoopSettings", "StepWork"),
        "prompt_steps": ("PromptSteps",),
        "recipe": ("learning_rate", "loop_settings"),
        "results": ("TrainResult",),
        "run": ("train", "train_with"),
        "run_directory": ("RunDirectory",),
        "soft_targets": ("SoftTargets",),
    },
)
