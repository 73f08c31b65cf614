"""Switches the faster kernels on for one call in one thread, without changing a model's weights or modules.

Knows nothing of prompts.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention as torch_attention
from torch.overrides import TorchFunctionMode

from ptuning.model.kernels.attention import JointPrefix, attention, forget_mask
from ptuning.model.kernels.interface import attending_by, attention_of_now
from ptuning.model.kernels.last_layer import LastLayerCut
from ptuning.model.kernels.linear import linear

_THREAD = threading.local()  # what is replaced in this thread
_Faster = dict[Callable[..., Any], Callable[..., Tensor]]


@contextmanager
def fast_kernels(
    joint_prefix: JointPrefix | None = None,
    cut: LastLayerCut | None = None,
    attends_by_name: bool = False,
    has_linear: bool = True,
) -> Iterator[None]:
    """A context in which the current thread computes a model's products and attention by the faster kernels.

    Other threads may run the same model meanwhile: torch keeps its function modes per thread. On a GPU the process does
    not choose cuDNN for attention while attention is called.

    Args:
        joint_prefix: The prefix put before the keys and values of every row; None: no prefix.
        cut: The products that are needed for some tokens only; None: all products are computed whole.
        attends_by_name: Whether the model calls the attention of `interface`; if not, torch's function is intercepted.
        has_linear: Whether torch's function for products is intercepted as well.
    """
    own_attention = _attention_with(joint_prefix)
    with ExitStack() as stack:
        stack.callback(forget_mask)
        if has_linear or not attends_by_name:
            faster: _Faster = {torch_attention: own_attention}
            if has_linear:
                faster[functional.linear] = _linear_with(cut)
            stack.enter_context(_replacing(faster))
            own_attention = torch_attention
        if attends_by_name:
            stack.enter_context(attending_by(own_attention))
        yield


def same_kernels() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for a part that runs twice, the second time in another thread maybe: by the kernels of now.

    For `context_fn` of `torch.utils.checkpoint.checkpoint`.
    """
    return nullcontext(), _again(getattr(_THREAD, "faster", None), attention_of_now())


@contextmanager
def _again(faster: _Faster | None, attention: Callable[..., Tensor] | None) -> Iterator[None]:
    with ExitStack() as stack:
        if faster is not None:
            stack.enter_context(_replacing(faster))
        if attention is not None:
            stack.enter_context(attending_by(attention))
        yield


@contextmanager
def _replacing(faster: _Faster) -> Iterator[None]:
    before = getattr(_THREAD, "faster", None)
    _THREAD.faster = faster
    try:
        with _Replaced(faster):
            yield
    finally:
        _THREAD.faster = before


class _Replaced(TorchFunctionMode):
    """A context in which this thread's calls of some functions of torch go to others."""

    def __init__(self, faster: _Faster) -> None:
        super().__init__()
        self._faster = faster

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        func = self._faster.get(func, func)
        return func(*args, **kwargs) if kwargs else func(*args)


def _linear_with(cut: LastLayerCut | None) -> Callable[..., Tensor]:
    if cut is None:
        return linear

    def cut_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if id(weight) in cut.weights and cut.takes(input, weight):
            return cut.product(linear, input, weight, bias)
        return linear(input, weight, bias)

    return cut_linear


def _attention_with(joint_prefix: JointPrefix | None) -> Callable[..., Tensor]:
    if joint_prefix is None:
        return attention

    def joint_attention(query: Tensor, key: Tensor, value: Tensor, *others: Any, **options: Any) -> Tensor:
        key, value = joint_prefix.before(key, value)
        return attention(query, key, value, *others, **options)

    return joint_attention
