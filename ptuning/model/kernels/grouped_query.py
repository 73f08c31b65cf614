"""Grouped-query attention that passes shared keys and values on without repeating them for each query head.

transformers repeats keys and values for its kernels; `attention.attend` does not need that on CPUs. Models that ptuning
loads on CPUs use the attention registered here, which differs from transformers' own only inside `unrepeated`. Knows
nothing of prompts.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "ptuning_sdpa"
_THREAD = threading.local()  # other threads may run the same model meanwhile


def prefer_unrepeated(model: Any) -> None:
    """Switches a newly loaded model from torch's attention to the one that need not repeat keys and values.

    Models that choose their attention themselves, as Falcon does, are left unchanged.
    """
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa" and model.is_backend_compatible():
        AttentionInterface.register(NAME, _sdpa)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        config._attn_implementation = NAME


@contextmanager
def unrepeated() -> Iterator[None]:
    """A context in which this thread passes keys and values unrepeated to `scaled_dot_product_attention` on CPUs.

    A replacement for that function must then accept more query heads than key heads, as `switch.FastKernels` does.
    """
    _THREAD.depth = getattr(_THREAD, "depth", 0) + 1
    try:
        yield
    finally:
        _THREAD.depth -= 1


def _sdpa(module: nn.Module, query: Tensor, *states: Any, **options: Any) -> tuple[Tensor, None]:
    """Calls transformers' attention; inside `unrepeated`, with a module that does not ask for repeated keys."""
    if getattr(_THREAD, "depth", 0) and query.device.type == "cpu":
        module = SimpleNamespace(is_causal=getattr(module, "is_causal", True))  # type: ignore[assignment]
    return sdpa_attention_forward(module, query, *states, **options)
