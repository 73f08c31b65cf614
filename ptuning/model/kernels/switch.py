"""Switches the faster kernels on for one call in one thread, without changing a model's weights, modules or settings.

Knows nothing of prompts.
"""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ptuning.model.kernels.attention import JointPrefix, attention
from ptuning.model.kernels.grouped_query import unrepeated
from ptuning.model.kernels.last_layer import LastLayerCut
from ptuning.model.kernels.linear import linear


class FastKernels(TorchFunctionMode):
    """A context in which the current thread computes a model's products and attention by the faster kernels.

    Other threads may run the same model meanwhile: torch keeps its function modes per thread, and nothing else is
    changed.

    Args:
        joint_prefix: The prefix put before the keys and values of every row; None: no prefix.
        cut: The products that are needed for some tokens only; None: all products are computed whole.
    """

    def __init__(self, joint_prefix: JointPrefix | None = None, cut: LastLayerCut | None = None) -> None:
        super().__init__()
        self._joint_prefix, self._cut, self._unrepeated = joint_prefix, cut, unrepeated()
        self._faster: dict[Callable[..., Any], Callable[..., Tensor]] = {
            functional.linear: self._linear,
            functional.scaled_dot_product_attention: self._attention,
        }

    def __enter__(self) -> Self:
        self._unrepeated.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._unrepeated.__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._faster.get(func, func)(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self._cut is not None and self._cut.takes(input, weight):
            return self._cut.product(linear, input, weight, bias)
        return linear(input, weight, bias)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *others: Any, **options: Any) -> Tensor:
        if self._joint_prefix is not None:
            key, value = self._joint_prefix.before(key), self._joint_prefix.before(value)
        return attention(query, key, value, *others, **options)
