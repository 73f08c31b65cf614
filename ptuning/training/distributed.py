"""The machine a run is on, through accelerate: one process or many, devices, trackers, memory.

Knows nothing of prompts or of the training loop.
"""

import importlib.util
import resource
import sys

import torch
from accelerate import Accelerator

from ptuning.config import RunConfig
from ptuning.errors import TrainingError


def accelerator(config: RunConfig) -> Accelerator:
    """One process or many, as the launcher says; the frozen model's precision is its own, not autocast's."""
    tracker = config.train.report_to
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise TrainingError(
            f"train.report_to: {tracker}, which is not installed", "a tracker", f"pip install {tracker}"
        )
    return Accelerator(
        cpu=config.model.device == "cpu",
        mixed_precision="no",
        log_with=None if tracker == "none" else tracker,
        project_dir=config.train.output_dir,
    )


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: the accelerator's where there is one, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
