"""What a training step is made of: operators, those that a GPU must stop for, own Python, and the GPU's own work.

Each function runs a step that it is given. Knows nothing of models or of the two sides.
"""

import cProfile
import pstats
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

from ptuning.training.graphs import reads_device

Step = Callable[[], object]

NUM_AVERAGED = 6  # steps whose times are averaged
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaMemcpy2D")


class Operators(TorchDispatchMode):
    """Counts the operators that run inside it, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.data_dependent: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts one and runs it."""
        name = func._schema.name.split("::")[1]
        self.by_name[name] += 1
        if reads_device(func, args, kwargs or {}):
            self.data_dependent[name] += 1
        return func(*args, **(kwargs or {}))


def operators(step: Step) -> dict[str, Any]:
    """How many operators a step runs, and the names and numbers of those whose result depends on data."""
    with Operators() as counted:
        step()
    return {
        "operators": counted.by_name.total(),
        "data_dependent_operators": counted.data_dependent.total(),
        "data_dependent": dict(counted.data_dependent),
        "most_frequent": dict(counted.by_name.most_common(20)),
    }


def own_python_seconds(step: Step, folder: Path) -> float:
    """Seconds of a step in Python code of a folder's files, without what they call; cProfile slows it."""
    profiler = cProfile.Profile()
    profiler.enable()
    step()
    profiler.disable()
    entries = pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
    return sum(own for (file, _, _), (_, _, own, _, _) in entries if Path(file).is_relative_to(folder))


def host_seconds(steps: Iterable[Step], synchronise: Callable[[], None]) -> float:
    """Mean seconds until a step returns; a GPU may still have work to do."""
    taken = []
    for step in steps:
        synchronise()
        started = time.perf_counter()
        step()
        taken.append(time.perf_counter() - started)
    return sum(taken) / len(taken)


def gpu_use(steps: Sequence[Step], synchronise: Callable[[], None]) -> dict[str, float]:
    """The GPU's time, launches and waits, a step."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    synchronise()
    with torch.profiler.profile(activities=activities) as profiler:
        for step in steps:
            step()
    return summed_up(profiler.key_averages(), len(steps))


def summed_up(events: Iterable[Any], num_steps: int) -> dict[str, float]:
    """The same from the profiler's averages by name: `key`, `count`, `device_type`, `self_device_time_total`."""
    device_us, launches, graphs, waits = 0.0, 0, 0, 0
    for event in events:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            device_us += event.self_device_time_total
        launches += event.count if event.key.startswith(("cudaLaunchKernel", "cuLaunchKernel")) else 0
        graphs += event.count if event.key.startswith("cudaGraphLaunch") else 0
        waits += event.count if event.key in _WAITS else 0
    return {
        "device_ms": device_us / 1e3 / num_steps,
        "kernel_launches": launches / num_steps,
        "graph_launches": graphs / num_steps,
        "synchronisations": waits / num_steps,
    }


def profiled(steps: Sequence[Step], package: Path, synchronise: Callable[[], None], has_gpu: bool) -> dict[str, Any]:
    """Everything of above; each step is run once.

    Args:
        steps: Steps of rows that have not been seen, `num_needed` of them.
        package: The folder whose Python is the side's own.
        synchronise: Waits for the device.
        has_gpu: Whether the device is a GPU.
    """
    timed, traced = steps[2 : 2 + NUM_AVERAGED], steps[2 + NUM_AVERAGED : -2]
    for step in steps[:2]:
        step()
    found: dict[str, Any] = {"host_ms": 1e3 * host_seconds(timed, synchronise)}
    if has_gpu:
        found |= gpu_use(traced, synchronise)
    found["own_python_ms"] = 1e3 * own_python_seconds(steps[-2], package)
    return found | operators(steps[-1])


def num_needed(has_gpu: bool) -> int:
    """How many steps `profiled` takes."""
    return 4 + NUM_AVERAGED * (2 if has_gpu else 1)


ROWS = {
    "operators": "operators",
    "data_dependent_operators": "operators whose result depends on data (each stops a GPU)",
    "own_python_ms": "own Python under cProfile, ms",
    "host_ms": "until a step returns, ms",
    "device_ms": "the GPU works, ms",
    "kernel_launches": "kernels launched one by one",
    "graph_launches": "graphs launched",
    "synchronisations": "waits for the GPU",
}


def table(sides: dict[str, dict[str, Any]]) -> list[str]:
    """Both sides, a step of new rows."""
    lines = ["| a step of new rows | ptuning | PEFT |", "|---|---|---|"]
    for what, name in ROWS.items():
        if what in sides["ours"]:
            lines.append(f"| {name} | " + " | ".join(f"{sides[side][what]:.5g}" for side in ("ours", "peft")) + " |")
    told = {side: found["data_dependent"] for side, found in sides.items()}
    return [*lines, "", f"depend on data: ptuning {told['ours']}, PEFT {told['peft']}", ""]
