"""The machine that is measured on: waiting until it is done, its memory, and its name.

Knows nothing of models.
"""

import platform
import shutil
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path

import torch


class Device(ABC):
    """Where the model is. `loaded_bytes` is called when the model is there and nothing has run."""

    name: str
    """As torch names it."""
    is_gpu: bool
    """Whether work is done after it has been asked for."""
    loaded_bytes: int = 0
    """Memory that the loaded model takes."""

    @staticmethod
    def of(name: str) -> "Device":
        """The device of a name such as cpu, cuda or cuda:1."""
        return Cpu() if name == "cpu" else Cuda(name)

    def note_loaded(self) -> None:
        """Takes what is held now as the loaded model's memory."""
        self.loaded_bytes = self.held_bytes()

    @abstractmethod
    def synchronise(self) -> None:
        """Waits until everything that was asked for is done."""

    @abstractmethod
    def held_bytes(self) -> int:
        """Memory that is held now."""

    @abstractmethod
    def reset_peak(self) -> None:
        """From now on the peak is measured anew."""

    @abstractmethod
    def peak_bytes(self) -> int:
        """The most memory held since `reset_peak`."""

    @abstractmethod
    def release(self) -> None:
        """Gives memory back that is kept for later use, so that another process can have it."""

    @abstractmethod
    def about(self) -> dict[str, str | int]:
        """Names and versions."""


class Cpu(Device):
    """The processor; memory is the process's."""

    name, is_gpu = "cpu", False

    def synchronise(self) -> None:
        """Nothing to wait for."""

    def held_bytes(self) -> int:
        """VmRSS."""
        return _resident("VmRSS")

    def reset_peak(self) -> None:
        """VmHWM begins anew."""
        Path("/proc/self/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """VmHWM."""
        return _resident("VmHWM")

    def release(self) -> None:
        """Nothing is kept."""

    def about(self) -> dict[str, str | int]:
        """The processor and torch's threads."""
        return {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}


class Cuda(Device):
    """A GPU; memory is what torch's allocator holds, without what CUDA itself takes."""

    is_gpu = True

    def __init__(self, name: str) -> None:
        self.name = name

    def synchronise(self) -> None:
        """Waits for the GPU."""
        torch.cuda.synchronize(self.name)

    def held_bytes(self) -> int:
        """Bytes that the allocator holds."""
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(self.name)

    def reset_peak(self) -> None:
        """The peak begins anew."""
        torch.cuda.reset_peak_memory_stats(self.name)

    def peak_bytes(self) -> int:
        """The most bytes that the allocator held: those of graphs, which it keeps between their uses, too."""
        return torch.cuda.max_memory_reserved(self.name)

    def release(self) -> None:
        """Empties the allocator's cache."""
        torch.cuda.empty_cache()

    def about(self) -> dict[str, str | int]:
        """The GPU, its memory, the driver, CUDA and cuDNN."""
        properties = torch.cuda.get_device_properties(self.name)
        return {
            "gpu": properties.name,
            "gpu_bytes": properties.total_memory,
            "driver": _driver_version(),
            "cuda": torch.version.cuda or "none",
            "cudnn": torch.backends.cudnn.version() or 0,
        }


def _resident(what: str) -> int:
    """Bytes of memory that the process holds (VmRSS), or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def _driver_version() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip() or "unknown"
