"""The processes and devices of a run, through accelerate; trackers; memory.

Knows nothing of prompts or of what is trained.
"""

import importlib.util
import resource
import sys

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor

from ptuning.config import RunConfig
from ptuning.errors import TrainingError


def accelerator(config: RunConfig, device: torch.device | None = None) -> Accelerator:
    """One process or many, as the launcher says; the frozen model's precision is its own, not autocast's.

    Args:
        config: The run.
        device: Where a model stands that is loaded already; None: the config says where.
    """
    tracker = config.train.report_to
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise TrainingError(
            f"train.report_to: {tracker}, which is not installed", "a tracker", f"pip install {tracker}"
        )
    return Accelerator(
        cpu=config.model.device == "cpu" if device is None else _chooses_cpu(device),
        mixed_precision="no",
        log_with=None if tracker == "none" else tracker,
        project_dir=config.train.output_dir,
    )


def accelerator_on(device: torch.device) -> Accelerator:
    """For a loop of its own on a device, without trackers."""
    return Accelerator(cpu=_chooses_cpu(device), mixed_precision="no")


def _chooses_cpu(device: torch.device) -> bool:
    """Whether to ask for the CPU: accelerate has one state a process, and its first user chooses."""
    return device.type == "cpu" and not PartialState._shared_state


def sum_over_processes(accelerator: Accelerator, value: float) -> float:
    """The sum of every process's value; each process must call it, and all get the same."""
    if accelerator.num_processes == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=accelerator.device)
    return float(accelerator.reduce(total, reduction="sum"))


def sum_tensor_over_processes(accelerator: Accelerator, value: Tensor) -> Tensor:
    """Like `sum_over_processes`, for a tensor on the device, without waiting for it."""
    if accelerator.num_processes == 1:
        return value
    total: Tensor = accelerator.reduce(value, reduction="sum")
    return total


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: the accelerator's where there is one, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
