"""Attention whose heads of queries share keys and values, which are handed on without a copy for each of them.

transformers repeats keys and values for its kernels; on CPUs `attention.attend` does without. Models that ptuning loads
there have an attention of this name, which is transformers' own but inside `unrepeated`. Knows nothing of prompts.
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
_HERE = threading.local()  # each thread's own: others may run the same model meanwhile


def prefer_unrepeated(model: Any) -> None:
    """Gives a model that was just loaded the attention that need not repeat, where it would have taken torch's own.

    Models that choose their attention themselves, as Falcon, are left alone.
    """
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa" and model.is_backend_compatible():
        AttentionInterface.register(NAME, _sdpa)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        config._attn_implementation = NAME


@contextmanager
def unrepeated() -> Iterator[None]:
    """While it lasts, `scaled_dot_product_attention` is given keys and values as they are, in this thread, on CPUs.

    What stands in for that function must take more heads of queries than of keys, as `switch.FastKernels` does.
    """
    _HERE.depth = getattr(_HERE, "depth", 0) + 1
    try:
        yield
    finally:
        _HERE.depth -= 1


def _sdpa(module: nn.Module, query: Tensor, *states: Any, **options: Any) -> tuple[Tensor, None]:
    """The way to torch's function, which looks at the module for how often to repeat keys and values."""
    if getattr(_HERE, "depth", 0) and query.device.type == "cpu":
        module = SimpleNamespace(is_causal=getattr(module, "is_causal", True))  # type: ignore[assignment]
    return sdpa_attention_forward(module, query, *states, **options)
