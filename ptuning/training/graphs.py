"""CUDA graphs of the pass over lines: recorded once per shape, and replayed without launching kernel by kernel.

Knows nothing of encoders, optimizers or rows.
"""

import logging
import threading
import warnings
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ptuning.forward import Lines, loss_and_gradient
from ptuning.model import CausalBackbone

_log = logging.getLogger(__name__)

MAX_GRAPHS = 16  # recorded at most; they share their memory, so each costs little
_FIRST_RECORDED = 2  # the pass of a shape at which it is recorded: the first one runs as it is, which warms kernels up
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
_RECORDING = threading.Lock()  # another thread that waits for the device would spoil a recording


class GraphedPass:
    """`forward.loss_and_gradient` of one model, replayed from CUDA graphs where the device and the model allow it.

    Elsewhere it runs as it is. The numbers are the same. For one thread at a time.
    """

    def __init__(self) -> None:
        self.is_on = True
        """Whether graphs are recorded; False once that was found to be impossible."""
        self.graphs: dict[Hashable, Graph] = {}
        """The graph of each shape."""
        self._num_seen: dict[Hashable, int] = {}
        self._memory: _GraphMemory | None = None

    def __call__(self, backbone: CausalBackbone, prompt: Tensor, lines: Lines) -> tuple[Tensor, Tensor]:
        """The summed loss of lines in nats, and its gradient with respect to the prompt; as `loss_and_gradient`."""
        if not self.is_on or not can_record(backbone, prompt.device):
            return loss_and_gradient(backbone, prompt, lines)
        try:
            return self._by_graph(backbone, prompt, lines)
        except torch.OutOfMemoryError:
            if not self.graphs:
                raise
        self.forget()  # graphs keep the memory of a whole pass
        return loss_and_gradient(backbone, prompt, lines)

    def forget(self) -> None:
        """Gives back the memory of all graphs; they are recorded anew when their shapes come again."""
        self.graphs.clear()
        self._num_seen.clear()
        self._memory = None
        torch.cuda.empty_cache()

    def _by_graph(self, backbone: CausalBackbone, prompt: Tensor, lines: Lines) -> tuple[Tensor, Tensor]:
        key = (id(backbone), lines.shape, tuple(prompt.shape), prompt.dtype)
        if key in self.graphs:
            return self.graphs[key].replay(prompt, lines)
        if len(self.graphs) == MAX_GRAPHS:
            return loss_and_gradient(backbone, prompt, lines)
        self._num_seen[key] = self._num_seen.get(key, 0) + 1
        if self._num_seen[key] < _FIRST_RECORDED:
            return self._watched(backbone, prompt, lines)
        failure = self._record(key, backbone, prompt, lines)
        if failure is None:
            return self.graphs[key].replay(prompt, lines)
        self._give_up(failure)
        return loss_and_gradient(backbone, prompt, lines)

    def _watched(self, backbone: CausalBackbone, prompt: Tensor, lines: Lines) -> tuple[Tensor, Tensor]:
        """The pass as it is; one that waits for the device ends the recording of graphs."""
        with DeviceReads() as reads:
            found = loss_and_gradient(backbone, prompt, lines)
        if reads.names:
            self._give_up(f"{backbone.name} reads the device in a pass ({', '.join(sorted(set(reads.names)))})")
        return found

    def _record(self, key: Hashable, backbone: CausalBackbone, prompt: Tensor, lines: Lines) -> str | None:
        """Records a graph; returns the reason if CUDA refuses what the model does."""
        self._memory = self._memory or _GraphMemory.on(prompt.device)
        try:
            self.graphs[key] = Graph.of(backbone, prompt, lines, self._memory)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, UserWarning) as error:
            self._memory.end_recording()
            return str(error).splitlines()[0]
        return None

    def _give_up(self, reason: str) -> None:
        self.is_on = False
        self.forget()
        _log.warning(f"steps run without CUDA graphs, which is slower: {reason}")


def can_record(backbone: CausalBackbone, device: torch.device) -> bool:
    """Whether the device has CUDA graphs, and the whole model is on it."""
    return device.type == "cuda" and not hasattr(backbone.model, "hf_device_map")


@dataclass(frozen=True)
class _GraphMemory:
    """What graphs share: the memory that they use one after the other, and the stream on which they are recorded."""

    device: torch.device
    pool: Any
    stream: Any

    @classmethod
    def on(cls, device: torch.device) -> "_GraphMemory":
        with torch.cuda.device(device):
            return cls(device, torch.cuda.graph_pool_handle(), torch.cuda.Stream())

    def end_recording(self) -> None:
        """Ends what a failed recording has begun: torch would go on to take memory from the graphs' pool."""
        with suppress(RuntimeError, AttributeError):  # it has been ended, or this torch does so itself
            torch._C._cuda_endAllocateToPool(self.device.index, self.pool)


@dataclass(frozen=True, eq=False)
class Graph:
    """A recorded pass, and the tensors that it reads and writes."""

    graph: Any
    prompt: Tensor
    numbers: Tensor
    loss: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, backbone: CausalBackbone, prompt: Tensor, lines: Lines, memory: _GraphMemory) -> "Graph":
        """Runs the pass once as CUDA asks for, so that what is made on first use is made outside the graph; records it.

        Raises:
            RuntimeError: When CUDA cannot record what the model does.
        """
        own_prompt, own_lines = prompt.detach().clone(), lines.with_numbers(lines.numbers.clone())
        graph = torch.cuda.CUDAGraph()
        with ExitStack() as stack:
            stack.enter_context(_RECORDING)
            stack.enter_context(torch.cuda.device(memory.device))
            memory.stream.wait_stream(torch.cuda.current_stream())
            stack.callback(torch.cuda.current_stream().wait_stream, memory.stream)
            stack.enter_context(torch.cuda.stream(memory.stream))  # set back even where the recording fails
            loss_and_gradient(backbone, own_prompt, own_lines)
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("error", message=".*CUDA Graph is empty.*")
            options = {"pool": memory.pool, "stream": memory.stream, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(graph, **options):
                loss, gradient = loss_and_gradient(backbone, own_prompt, own_lines)
        return cls(graph, own_prompt, own_lines.numbers, loss, gradient)

    def replay(self, prompt: Tensor, lines: Lines) -> tuple[Tensor, Tensor]:
        """The pass with other numbers."""
        with torch.cuda.device(self.numbers.device):
            self.prompt.copy_(prompt.detach())
            self.numbers.copy_(lines.numbers)
            self.graph.replay()
            return self.loss.clone(), self.gradient.clone()  # the next graph may use the same memory


class DeviceReads(TorchDispatchMode):
    """Notes the operators of this thread for which a GPU has to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if reads_device(func, args, kwargs or {}) or _crosses_devices(func, args, found):
            self.names.append(str(func))
        return found


def reads_device(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator's result, or its shape, has to be known on the CPU before it can go on."""
    name = operator._schema.name.split("::")[1]
    if name in _INDEXING:
        return any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1])
    if name == "repeat_interleave" and kwargs.get("output_size") is not None:
        return False
    return torch.Tag.data_dependent_output in operator.tags or torch.Tag.dynamic_output_shape in operator.tags


def _crosses_devices(operator: Any, args: Sequence[Any], found: Any) -> bool:
    """Whether an operator copies between devices, from memory that is not pinned."""
    name = operator._schema.name.split("::")[1]
    if name not in ("_to_copy", "copy_") or not isinstance(found, Tensor):
        return False
    source = args[1] if name == "copy_" else args[0]
    is_pinned = source.device.type == "cpu" and torch.cuda.is_available() and source.is_pinned()
    return source.device.type != found.device.type and not is_pinned
