"""Learns a prompt: the run, its loop, its directory.

Knows nothing of what a prompt means.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.training.backward import backward_in_parts as backward_in_parts
    from ptuning.training.run import TrainResult as TrainResult
    from ptuning.training.run import train as train
    from ptuning.training.run_directory import RunDirectory as RunDirectory

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "backward": ("backward_in_parts",),
        "run": ("TrainResult", "train"),
        "run_directory": ("RunDirectory",),
    },
)
