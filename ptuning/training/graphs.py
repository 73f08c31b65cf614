"""CUDA graphs of the pass over lines: recorded once per shape, and replayed without launching kernel by kernel.

Knows nothing of encoders, optimizers or rows.
"""

import logging
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ptuning.forward import Lines, loss_and_gradient
from ptuning.model import CausalBackbone

_log = logging.getLogger(__name__)

_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
MAX_GRAPHS = 16  # kept at once; they share their memory, so each costs little
_FIRST_RECORDED = 2  # the pass of a shape at which it is recorded: the first one runs as it is, which warms kernels up


class GraphedPass:
    """`forward.loss_and_gradient`, replayed from a CUDA graph where the device and the model allow it.

    Elsewhere it runs as it is. The numbers are the same. Not for many threads at once.

    Args:
        is_on: Whether graphs are recorded; False: every pass runs as it is.
    """

    def __init__(self, is_on: bool = True) -> None:
        self._is_on = is_on
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._num_seen: dict[Hashable, int] = {}
        self._pool: Any = None

    def __call__(self, backbone: CausalBackbone, prompt: Tensor, lines: Lines) -> tuple[Tensor, Tensor]:
        """The summed loss of lines in nats, and its gradient with respect to the prompt; as `loss_and_gradient`."""
        if not self._is_on or not can_record(prompt.device):
            return loss_and_gradient(backbone, prompt, lines)
        key = (lines.shape, tuple(prompt.shape), prompt.dtype)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key].replay(prompt, lines)
        self._num_seen[key] = self._num_seen.get(key, 0) + 1
        if self._num_seen[key] < _FIRST_RECORDED:
            return self._watched(backbone, prompt, lines)
        return self._recorded(key, backbone, prompt, lines)

    def _watched(self, backbone: CausalBackbone, prompt: Tensor, lines: Lines) -> tuple[Tensor, Tensor]:
        """The pass as it is; one that waits for the device ends the recording of graphs."""
        with DeviceReads() as reads:
            found = loss_and_gradient(backbone, prompt, lines)
        if reads.names:
            self._give_up(f"{backbone.name} reads the device in a pass ({', '.join(sorted(reads.names))})")
        return found

    def _recorded(self, key: Hashable, backbone: CausalBackbone, prompt: Tensor, lines: Lines) -> tuple[Tensor, Tensor]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            self._graphs[key] = _Graph.of(backbone, prompt, lines, self._pool)
        except torch.OutOfMemoryError:
            self._graphs.clear()
            raise
        except RuntimeError as error:  # CUDA refuses to record what the model does
            self._give_up(str(error).splitlines()[0])
            return loss_and_gradient(backbone, prompt, lines)
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return self._graphs[key].replay(prompt, lines)

    def _give_up(self, reason: str) -> None:
        self._is_on = False
        self._graphs.clear()
        _log.warning(f"steps run without CUDA graphs, which is slower: {reason}")


def can_record(device: torch.device) -> bool:
    """Whether the device has CUDA graphs."""
    return device.type == "cuda"


@dataclass(frozen=True, eq=False)
class _Graph:
    """A recorded pass, and the tensors that it reads and writes."""

    graph: Any
    prompt: Tensor
    numbers: Tensor
    loss: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, backbone: CausalBackbone, prompt: Tensor, lines: Lines, pool: Any) -> "_Graph":
        own_prompt, own_lines = prompt.detach().clone(), lines.with_numbers(lines.numbers.clone())
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):  # as CUDA asks for: lazily made handles and buffers are made outside the graph
            loss_and_gradient(backbone, own_prompt, own_lines)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            loss, gradient = loss_and_gradient(backbone, own_prompt, own_lines)
        return cls(graph, own_prompt, own_lines.numbers, loss, gradient)

    def replay(self, prompt: Tensor, lines: Lines) -> tuple[Tensor, Tensor]:
        self.prompt.copy_(prompt.detach())
        self.numbers.copy_(lines.numbers)
        self.graph.replay()
        return self.loss.clone(), self.gradient.clone()  # the next graph may use the same memory


class DeviceReads(TorchDispatchMode):
    """Notes the operators of this thread whose result depends on a tensor's numbers: a GPU has to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if reads_device(func, args, kwargs or {}):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def reads_device(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator's result, or its shape, has to be known on the CPU before it can go on."""
    name = operator._schema.name.split("::")[1]
    if name in _INDEXING:
        return any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1])
    if name == "repeat_interleave" and kwargs.get("output_size") is not None:
        return False
    return torch.Tag.data_dependent_output in operator.tags or torch.Tag.dynamic_output_shape in operator.tags
