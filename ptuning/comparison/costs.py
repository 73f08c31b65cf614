"""What a way costs: memory while it is fitted, and time while it answers.

Knows nothing of what ways are.
"""

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import torch

from ptuning.data import Row

ROWS_AT_ONCE = 32
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK, _NOW = "VmHWM", "VmRSS"
_CLEARS_PEAK = "5"


class MemoryMeter:
    """The most memory used since it was made, beyond what was in use then; None where the system does not tell.

    On a GPU it is the GPU's memory, on Linux the process's.

    Args:
        device: Where the model runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._before = device, None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        elif sys.platform == "linux":
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed is not counted as in use
            with suppress(OSError):
                _CLEAR.write_text(_CLEARS_PEAK)
                self._before = _kilobytes(_NOW)

    @property
    def added_bytes(self) -> int | None:
        """Bytes."""
        if self._before is None:
            return None
        if self._device.type == "cuda":
            return max(0, torch.cuda.max_memory_allocated(self._device) - self._before)
        return max(0, _kilobytes(_PEAK) - self._before) * 1024


def _kilobytes(name: str) -> int:
    """A number of the process's status."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


@dataclass(frozen=True)
class Speed:
    """How fast a way answers, each request from its text on, with nothing kept from earlier ones."""

    milliseconds: float
    """Median time of a request by itself."""
    rows_per_second: float
    """Rows a second, 32 at once."""


def speed_of(answer: Callable[[Sequence[Row]], object], rows: Sequence[Row], repeats: int) -> Speed:
    """Measures how fast a way answers.

    Args:
        answer: What answers rows, and has finished when it returns.
        rows: Rows to answer; test rows are left alone.
        repeats: How often each is measured.
    """
    answer(rows[:1])  # what is made on first use is made
    alone = [_seconds(answer, [row]) for row in islice(cycle(rows), 3 * repeats)]
    many = list(islice(cycle(rows), ROWS_AT_ONCE))
    together = [_seconds(answer, many) for _ in range(repeats)]
    return Speed(1000 * median(alone), ROWS_AT_ONCE / median(together))


def _seconds(answer: Callable[[Sequence[Row]], object], rows: Sequence[Row]) -> float:
    """The time of one call."""
    started = time.perf_counter()
    answer(rows)
    return time.perf_counter() - started
