"""The machine's memory and names; CUDA's functions are replaced, since tests have no GPU."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark.device import Cuda, Device


def test_memory_of_the_process_is_measured_anew() -> None:
    """In a process of its own, whose allocator keeps nothing from other tests."""
    code = """
import torch
from benchmark.device import Device
device = Device.of("cpu")
device.note_loaded()
large = torch.ones(20_000_000)
device.reset_peak()
kept = torch.ones(5_000_000)
del large
print(device.peak_bytes() - device.loaded_bytes)
device.reset_peak()
print(device.peak_bytes() - device.loaded_bytes)
assert kept[0] == 1
assert set(device.about()) == {"cpu", "threads"}
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "scripts")}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    first, second = map(int, run.stdout.split())
    assert first >= 95_000_000
    assert second < 60_000_000


def test_a_gpu_tells_its_memory_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []

    def fake(name: str, value: object) -> None:
        monkeypatch.setattr(torch.cuda, name, lambda device: told.append((name, device)) or value)

    fake("synchronize", None)
    fake("reset_peak_memory_stats", None)
    fake("memory_reserved", 7)
    fake("max_memory_reserved", 9)
    fake("get_device_properties", SimpleNamespace(name="H100", total_memory=80))
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$1" = --query-gpu=driver_version ] && echo 580.1\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    device = Device.of("cuda:1")
    assert isinstance(device, Cuda)
    device.synchronise()
    device.note_loaded()
    device.reset_peak()
    assert device.peak_bytes() - device.loaded_bytes == 2
    about = device.about()
    assert {name: about[name] for name in ("gpu", "gpu_bytes", "driver")} == {
        "gpu": "H100",
        "gpu_bytes": 80,
        "driver": "580.1",
    }
    assert {where for _, where in told} == {"cuda:1"}
