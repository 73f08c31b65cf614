"""transformers' attention interface: models that ptuning loads call its attention where a pass asks for it.

Their attention has a name of its own and is transformers' own but inside `attending_by`. So no function of torch has
to be intercepted, and keys and values that heads share are passed on without copies for each head. Knows nothing of
prompts.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "ptuning_sdpa"
_UNUSUAL = ("softcap", "position_bias", "cache")  # options that only transformers' own attention knows
_THREAD = threading.local()  # other threads may run the same model meanwhile


def prefer_own_attention(model: Any) -> None:
    """Switches a newly loaded model from transformers' call of torch's attention to the one registered here.

    Models that choose their attention themselves, as Falcon does, are left unchanged.
    """
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa" and model.is_backend_compatible():
        AttentionInterface.register(_NAME, _attention)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        config._attn_implementation = _NAME


def attends_by_name(model: Any) -> bool:
    """Whether a model calls the attention registered here."""
    return bool(model.config.get_text_config()._attn_implementation == _NAME)


@contextmanager
def attending_by(attention: Callable[..., Tensor]) -> Iterator[None]:
    """A context in which such models call a function in this thread.

    Args:
        attention: Takes what `scaled_dot_product_attention` takes; query heads may share key-value heads.
    """
    before = attention_of_now()
    _THREAD.attention = attention
    try:
        yield
    finally:
        _THREAD.attention = before


def attention_of_now() -> Callable[..., Tensor] | None:
    """The function that such models call in this thread; None outside `attending_by`."""
    chosen: Callable[..., Tensor] | None = getattr(_THREAD, "attention", None)
    return chosen


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers' attention does; inside `attending_by` by the function given there. `[B, T, N, D]`."""
    chosen = attention_of_now()
    if chosen is None or dropout or any(options.get(name) is not None for name in _UNUSUAL):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **options
        )
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    is_causal = is_causal and attention_mask is None and query.shape[2] > 1
    attended = chosen(query, key, value, attention_mask, 0.0, is_causal, scale=scaling)
    return attended.transpose(1, 2).contiguous(), None
