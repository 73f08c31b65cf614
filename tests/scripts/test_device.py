"""The machine's memory and names; CUDA's functions are replaced, since tests have no GPU."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark.device import Cpu, Cuda, Device


def test_memory_of_the_process_is_measured_anew() -> None:
    device = Device.of("cpu")
    device.note_loaded()
    large = torch.ones(20_000_000)
    device.reset_peak()
    kept = torch.ones(5_000_000)
    del large
    assert isinstance(device, Cpu)
    assert device.peak_bytes() - device.loaded_bytes >= 95_000_000
    device.reset_peak()
    assert device.peak_bytes() - device.loaded_bytes < 60_000_000
    assert kept[0] == 1
    assert set(device.about()) == {"cpu", "threads"}


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
