"""Operators of a step are counted forward and backward, and those that a GPU must stop for are known."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmark import profile
from torch.autograd import DeviceType

X = torch.arange(4.0)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (lambda: X + 1, {}),
        (lambda: X[torch.tensor([0, 2])], {}),
        (lambda: X[X > 1], {"index": 1}),
        (lambda: X.clone().masked_fill_(X > 1, 0.0), {}),
        (lambda: X.clone().index_put_((X > 1,), torch.zeros(())), {"index_put_": 1}),
        (lambda: X.sum().item(), {"_local_scalar_dense": 1}),
        (lambda: float(X[0]) + int(X[1]), {"_local_scalar_dense": 2}),
        (lambda: X.nonzero(), {"nonzero": 1}),
        (lambda: torch.where(X > 1), {"nonzero": 1}),
        (lambda: X.masked_select(X > 1), {"masked_select": 1}),
        (lambda: X.unique(), {"_unique2": 1}),
        (lambda: torch.equal(X, X), {"equal": 1}),
        (lambda: torch.repeat_interleave(X.long()), {"repeat_interleave": 1}),
        (lambda: torch.repeat_interleave(X.long(), output_size=6), {}),
    ],
)
def test_operators_that_depend_on_numbers_are_known(step: Callable[[], Any], expected: dict[str, int]) -> None:
    found = profile.operators(step)
    assert found["data_dependent"] == expected
    assert found["data_dependent_operators"] == sum(expected.values())


def test_operators_are_counted_forward_and_backward() -> None:
    class Masked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.exp()

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return grads[0] * float(grads[0][0])

    x = X.clone().requires_grad_()
    forward = profile.operators(lambda: Masked.apply(x))
    assert forward["most_frequent"]["exp"] == 1
    assert forward["operators"] == sum(forward["most_frequent"].values())
    assert forward["data_dependent"] == {}
    made = Masked.apply(x)
    backward = profile.operators(lambda: made.backward(torch.ones(4)))
    assert backward["most_frequent"]["mul"] == 1
    assert backward["data_dependent"] == {"_local_scalar_dense": 1}


def test_python_of_a_folder_is_timed_without_what_it_calls(tmp_path: Path) -> None:
    def busy(seconds: float) -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass

    here = Path(__file__).parent
    assert profile.own_python_seconds(lambda: busy(0.05), here) > 0.01
    assert profile.own_python_seconds(lambda: time.sleep(0.05), here) < 0.01
    assert profile.own_python_seconds(lambda: busy(0.05), tmp_path) == 0


def test_time_until_a_step_returns_begins_when_the_device_is_done() -> None:
    told: list[str] = []
    seconds = profile.host_seconds([lambda: told.append("step")] * 2, lambda: (told.append("done"), time.sleep(0.05)))
    assert told == ["done", "step"] * 2
    assert seconds < 0.04


def test_what_the_profiler_saw_is_summed_up_a_step() -> None:
    def event(key: str, count: int, on_gpu: bool = False, us: float = 0.0, is_note: bool = False) -> SimpleNamespace:
        kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
        return SimpleNamespace(
            key=key, count=count, device_type=kind, self_device_time_total=us, is_user_annotation=is_note
        )

    events = [
        event("aten::mm", 10, us=3000.0),
        event("gemm", 10, on_gpu=True, us=3000.0),
        event("Memcpy HtoD", 2, on_gpu=True, us=1000.0),
        event("Optimizer.step#AdamW.step", 1, on_gpu=True, us=9000.0, is_note=True),
        event("cudaLaunchKernel", 10),
        event("cudaLaunchKernelExC", 2),
        event("cuLaunchKernelEx", 2),
        event("cudaGraphLaunch", 4),
        event("cudaMemcpyAsync", 2),
        event("cudaMemcpy", 1),
        event("cudaStreamSynchronize", 2),
        event("cudaDeviceSynchronize", 1),
    ]
    found = profile.summed_up(events, num_steps=2)
    assert found == {"device_ms": 2.0, "kernel_launches": 7.0, "graph_launches": 2.0, "synchronisations": 2.0}


@pytest.mark.parametrize("has_gpu", [False, True])
def test_each_step_is_run_once(has_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"device_ms": 1.0, "kernel_launches": 2.0, "graph_launches": 3.0, "synchronisations": 4.0}
    monkeypatch.setattr(profile, "gpu_use", lambda steps, _: [step() for step in steps] and gpu)
    run: list[int] = []
    steps = [lambda k=k: run.append(k) for k in range(profile.num_needed(has_gpu))]
    found = profile.profiled(steps, Path(__file__).parent, lambda: None, has_gpu)
    assert run == list(range(profile.num_needed(has_gpu)))
    shown = [line for line in profile.table({"ours": found, "peft": found}) if line.startswith("|")]
    assert len(shown) == 2 + len(profile.ROWS) - (0 if has_gpu else len(gpu))
