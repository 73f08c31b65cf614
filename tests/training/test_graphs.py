"""When a pass is recorded, replayed or run as it is; the graphs themselves are tested on a GPU, in test_cuda.py."""

import logging
from typing import Any

import pytest
import torch
from families import tiny_backbone
from torch import Tensor

from ptuning.data.examples import Example
from ptuning.forward.batch_prompt import StaticPrompt
from ptuning.forward.line_pass import lay_out, loss_and_gradient
from ptuning.forward.lines import Lines
from ptuning.forward.packing import Sizes
from ptuning.model.causal import CausalBackbone
from ptuning.training import graphs
from ptuning.training.graphs import MAX_GRAPHS, DeviceReads, GraphedPass


class FakeGraph:
    """Runs the pass in place of a recording of it."""

    made: list["FakeGraph"]

    def __init__(self, backbone: CausalBackbone) -> None:
        self.backbone, self.num_replays = backbone, 0

    @classmethod
    def of(cls, backbone: CausalBackbone, prompt: Tensor, lines: Lines, memory: Any) -> "FakeGraph":
        cls.made.append(cls(backbone))
        return cls.made[-1]

    def replay(self, prompt: Tensor, lines: Lines) -> tuple[Tensor, Tensor]:
        self.num_replays += 1
        return loss_and_gradient(self.backbone, prompt, lines)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
    """Makes the CPU a device that has graphs."""
    FakeGraph.made = []
    monkeypatch.setattr(graphs, "can_record", lambda backbone, device: True)
    monkeypatch.setattr(graphs, "Graph", FakeGraph)
    memory = graphs._GraphMemory(torch.device("cpu", 0), (0, 1), None)
    monkeypatch.setattr(graphs._GraphMemory, "on", lambda device: memory)
    return FakeGraph


def pass_of(num_virtual: int = 4) -> tuple[CausalBackbone, Tensor, Lines]:
    backbone = tiny_backbone()
    assert isinstance(backbone, CausalBackbone)
    slot = range(-1, -1 - num_virtual, -1)
    batch = backbone.collate([Example([*slot, *range(b, b + 5)], [3]) for b in (5, 50)])
    prompt_PH = torch.randn(num_virtual, backbone.width, generator=torch.Generator().manual_seed(0))
    lines = lay_out(backbone, StaticPrompt(prompt_PH), batch, Sizes(are_rounded=True))
    assert lines is not None
    loss_and_gradient(backbone, prompt_PH, lines)  # what the model can do is found out by running it
    return backbone, prompt_PH, lines


def test_a_shape_is_recorded_when_it_comes_again(recording: type[FakeGraph]) -> None:
    run, (backbone, prompt_PH, lines) = GraphedPass(), pass_of()
    expected = loss_and_gradient(backbone, prompt_PH, lines)
    counts = []
    for _ in range(4):
        found = run(backbone, prompt_PH, lines)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        counts.append((len(recording.made), sum(each.num_replays for each in recording.made)))
    assert counts == [(0, 0), (1, 1), (1, 2), (1, 3)]


def test_each_shape_has_a_graph_of_its_own_up_to_a_number(recording: type[FakeGraph]) -> None:
    run, passes = GraphedPass(), [pass_of(num_virtual=num) for num in range(1, MAX_GRAPHS + 2)]
    for own, prompt_PH, lines in passes:
        for _ in range(2):
            found = run(own, prompt_PH, lines)
        assert torch.equal(found[1], loss_and_gradient(own, prompt_PH, lines)[1])
    assert len(recording.made) == len(run.graphs) == MAX_GRAPHS
    run(*passes[0])
    assert recording.made[0].num_replays == 2


def test_another_model_of_the_same_shapes_has_graphs_of_its_own(recording: type[FakeGraph]) -> None:
    run, (backbone, prompt_PH, lines) = GraphedPass(), pass_of()
    other = tiny_backbone(rms_norm_eps=0.5)
    assert isinstance(other, CausalBackbone)
    for _ in range(3):
        run(backbone, prompt_PH, lines)
    assert torch.equal(run(other, prompt_PH, lines)[0], loss_and_gradient(other, prompt_PH, lines)[0])


def test_a_model_that_reads_the_device_is_not_recorded_and_says_so_once(
    recording: type[FakeGraph], caplog: pytest.LogCaptureFixture
) -> None:
    run, (backbone, prompt_PH, lines) = GraphedPass(), pass_of()
    backbone.model.model.layers[0].register_forward_pre_hook(lambda _, states: states[0].sum().item() and None)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            run(backbone, prompt_PH, lines)
    assert not recording.made
    (record,) = caplog.records
    assert record.getMessage().startswith(f"steps run without CUDA graphs, which is slower: {backbone.name} reads")


def test_what_cannot_be_recorded_runs_as_it_is(
    recording: type[FakeGraph], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> FakeGraph:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(recording, "of", refuse)
    run, (backbone, prompt_PH, lines) = GraphedPass(), pass_of()
    expected = loss_and_gradient(backbone, prompt_PH, lines)
    for _ in range(3):
        assert torch.equal(run(backbone, prompt_PH, lines)[1], expected[1])
    assert [record.getMessage().splitlines() for record in caplog.records] == [
        ["steps run without CUDA graphs, which is slower: operation not permitted when stream is capturing"]
    ]


def test_graphs_are_given_up_where_memory_runs_out_before_it_is_told(
    recording: type[FakeGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, (backbone, prompt_PH, lines) = GraphedPass(), pass_of()
    other = pass_of(num_virtual=5)
    run(backbone, prompt_PH, lines)
    with monkeypatch.context() as patch:
        patch.setattr(recording, "of", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
        with pytest.raises(torch.OutOfMemoryError):
            run(backbone, prompt_PH, lines)
    run(backbone, prompt_PH, lines)
    assert len(run.graphs) == 1  # it is tried again
    run(*other)
    with monkeypatch.context() as patch:
        patch.setattr(recording, "of", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
        found = run(*other)  # there are graphs whose memory can be given back
    assert torch.equal(found[0], loss_and_gradient(*other)[0])
    assert not run.graphs


def test_on_a_cpu_the_pass_runs_as_it_is() -> None:
    run, (backbone, prompt_PH, lines) = GraphedPass(), pass_of()
    for _ in range(3):
        run(backbone, prompt_PH, lines)
    assert not run.graphs


@pytest.mark.parametrize(
    ("operation", "is_read"),
    [
        (lambda x: x.sum().item(), True),
        (lambda x: x[x > 0], True),
        (lambda x: x.nonzero(), True),
        (lambda x: x.index_put((x > 0,), x.new_zeros(1)), True),
        (lambda x: torch.equal(x, x), True),
        (lambda x: x.unique(), True),
        (lambda x: x[torch.tensor([0, 1])], False),
        (lambda x: torch.where(x > 0, x, 0.0), False),
        (lambda x: x.gather(0, torch.tensor([0])), False),
    ],
)
def test_operators_that_read_the_device_are_known(operation: Any, is_read: bool) -> None:
    with DeviceReads() as reads:
        operation(torch.tensor([1.0, -1.0, 2.0]))
    assert bool(reads.names) == is_read


def test_the_backward_pass_is_watched_too() -> None:
    leaf = torch.tensor([1.0, -1.0], requires_grad=True)
    (found,) = (leaf * leaf)[leaf > 0]
    with DeviceReads() as reads:
        found.backward()
    assert reads.names
