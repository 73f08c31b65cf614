"""The loop: its steps are plain PyTorch's for any module and loss, and its state goes on exactly."""

import io
import math

import pytest
import torch
from torch import Tensor, nn

from ptuning.training.distributed import accelerator_on
from ptuning.training.loop import Loop, LoopSettings, NotFiniteError, StepWork, rate

SETTINGS = LoopSettings(max_steps=12, learning_rate=0.05, weight_decay=0.1, warmup_ratio=0.25, max_grad_norm=0.5)


def network(seed: int = 0) -> nn.Module:
    """A small network that draws random numbers in every step."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 1))


def inputs(step: int) -> Tensor:
    return torch.randn(2 + step % 3, 3, generator=torch.Generator().manual_seed(step))


def work_of(step: int) -> StepWork:
    """As much as there are inputs: the network is to give their first column."""

    def add_gradients(module: nn.Module, scale: float) -> float:
        loss_sum = (module(inputs(step)) - inputs(step)[:, :1]).square().sum()
        (loss_sum * scale).backward()
        return loss_sum.item()

    return StepWork(len(inputs(step)), num_tokens=7, add_gradients=add_gradients)


def loop_of(module: nn.Module, settings: LoopSettings = SETTINGS) -> Loop:
    return Loop(module, work_of, settings, accelerator_on(torch.device("cpu")))


def test_steps_are_those_of_a_plain_loop_to_the_bit() -> None:
    expected = network()
    optimizer = torch.optim.AdamW(expected.parameters(), lr=0.05, weight_decay=0.1, fused=True)
    losses, norms = [], []
    for step in range(12):
        optimizer.param_groups[0]["lr"] = 0.05 * ((step + 1) / 3 if step < 3 else (12 - step) / 9)
        loss = (expected(inputs(step)) - inputs(step)[:, :1]).square().sum()
        (loss * (1 / len(inputs(step)))).backward()
        norms.append(nn.utils.clip_grad_norm_(expected.parameters(), 0.5).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item() / len(inputs(step)))
    module = network()
    records = list(loop_of(module).steps())
    assert [record.step for record in records] == list(range(1, 13))
    assert [record.loss for record in records] == losses
    assert [record.grad_norm for record in records] == norms
    assert max(norms) > 0.5  # some were clipped
    assert records[4].learning_rate == 0.05 * (12 - 4) / 9
    assert all(record.tokens_per_second > 0 for record in records)
    for one, other in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_state_goes_on_to_the_bit_in_another_loop() -> None:
    whole, begun, resumed = network(), network(), network(seed=1)
    torch.manual_seed(5)
    expected = [(record.step, record.loss) for record in loop_of(whole).steps()]
    torch.manual_seed(5)
    first = loop_of(begun)
    for record in first.steps():
        if record.step == 5:
            break
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    torch.manual_seed(9)
    second = loop_of(resumed)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert [(record.step, record.loss) for record in second.steps()] == expected[5:]
    for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_steps_go_on_where_the_iteration_stopped() -> None:
    loop = loop_of(network())
    assert next(loop.steps()).step == 1
    assert next(loop.steps()).step == 2
    assert len(list(loop.steps())) == 10
    assert list(loop.steps()) == []


def test_parameters_that_need_no_gradient_stay() -> None:
    module = network()
    first, last = module[0], module[2]  # type: ignore[index]
    first.requires_grad_(False)
    before = [first.weight.clone(), last.weight.clone()]
    list(loop_of(module).steps())
    assert torch.equal(first.weight, before[0])
    assert not torch.equal(last.weight, before[1])


def test_mean_loss_is_over_the_label_tokens_since_the_last_one() -> None:
    loop = loop_of(network())
    records, means = [], []
    for record in loop.steps():
        records.append((record.loss, len(inputs(record.step - 1))))
        if record.step % 6 == 0:
            means.append(loop.take_mean_loss())
    for part, mean in zip((records[:6], records[6:]), means, strict=True):
        assert mean == pytest.approx(sum(loss * count for loss, count in part) / sum(count for _, count in part))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_before_the_step(bad: float) -> None:
    module = network()

    def bad_at_step_3(step: int) -> StepWork:
        work = work_of(step)
        if step < 2:
            return work
        return StepWork(work.num_label_tokens, 7, lambda module, scale: work.add_gradients(module, scale) * bad)

    loop = Loop(module, bad_at_step_3, SETTINGS, accelerator_on(torch.device("cpu")))
    steps = loop.steps()
    assert [next(steps).step, next(steps).step] == [1, 2]
    before = [each.clone() for each in module.parameters()]
    with pytest.raises(NotFiniteError, match=rf"loss {bad} at step 3; expected a finite number\. .* lower learning"):
        next(steps)
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), before, strict=True))


def test_gradient_that_is_not_finite_stops_before_the_step() -> None:
    module = network()

    def work(step: int) -> StepWork:
        return StepWork(1, 1, lambda module, scale: (module(inputs(0)) * math.inf).sum().backward() or 0.5)

    with pytest.raises(NotFiniteError, match=r"gradient (nan|inf) at step 1; expected a finite number"):
        list(Loop(module, work, SETTINGS, accelerator_on(torch.device("cpu"))).steps())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.5, 1.0, 1.0, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(3 * math.pi / 4)) / 2]),
    ],
)
def test_learning_rate_rises_then_falls(kind: str, expected: list[float]) -> None:
    settings = LoopSettings(6, 1.0, lr_scheduler_type=kind, warmup_ratio=0.25)  # type: ignore[arg-type]
    assert [rate(settings, step) for step in range(6)] == pytest.approx(expected)
