"""Faster ways to torch's own functions, taken while a mode is on, so that nothing of a model is changed.

Knows nothing of models.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ptuning.attention import attention
from ptuning.linear import linear


class FastKernels(TorchFunctionMode):
    """While it is on, attention of short rows and products with frozen weights are computed the faster way.

    Args:
        num_head: Leading keys and values of the first row that are put before those of every row; the mask has them.
    """

    def __init__(self, num_head: int = 0) -> None:
        super().__init__()
        self._num_head = num_head

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear:
            func = linear
        elif func is functional.scaled_dot_product_attention:
            func = attention
            if self._num_head:
                query, key, value, *others = args
                args = (query, *(_behind_head(each, self._num_head) for each in (key, value)), *others)
        return func(*args, **(kwargs or {}))


def _behind_head(states: Tensor, num_head: int) -> Tensor:
    """Keys or values `[L, heads, W, D]` with the first row's leading ones before each row's."""
    return torch.cat([states[:1, :, :num_head].expand(len(states), -1, -1, -1), states], dim=2)
