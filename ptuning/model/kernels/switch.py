"""Faster ways to torch's own functions, taken while a mode is on, so that no weight or module of a model is changed.

Knows nothing of prompts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ptuning.model.kernels.attention import attention
from ptuning.model.kernels.grouped_query import unrepeated
from ptuning.model.kernels.linear import linear

_FASTER: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.linear: linear,
    functional.scaled_dot_product_attention: attention,
}


class FastKernels(TorchFunctionMode):
    """While it is on, attention of short rows and products with frozen weights are computed the faster way."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _FASTER.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def fast_kernels(model: Any) -> Iterator[None]:
    """While it lasts, a model runs by the faster ways, its keys and values not repeated for heads that share them."""
    with unrepeated(model), FastKernels():
        yield
