"""Attention whose heads of queries share keys and values, which are handed on without a copy for each of them.

transformers repeats keys and values for its kernels; on CPUs `attention.attend` does without. Knows nothing of prompts.
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

_NAME = "ptuning_unrepeated"
_HERE = threading.local()  # other threads may run the same model meanwhile, whose attention stays as it was


@contextmanager
def unrepeated(model: Any) -> Iterator[None]:
    """While it lasts, a model on a CPU gives `scaled_dot_product_attention` its keys and values as they are.

    What stands in for that function must take more heads of queries than of keys, as `kernels.FastKernels` does.
    Models that choose their attention themselves, as Falcon, are left alone.
    """
    config, takes_others = model.config.get_text_config(), model.is_backend_compatible()
    if config._attn_implementation not in ("sdpa", _NAME) or not takes_others or model.device.type != "cpu":
        yield
        return
    AttentionInterface.register(_NAME, _sdpa)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    config._attn_implementation, _HERE.is_on = _NAME, True
    try:
        yield
    finally:
        config._attn_implementation, _HERE.is_on = "sdpa", False


def _sdpa(module: nn.Module, *states: Any, **options: Any) -> tuple[Tensor, None]:
    """The way to torch's function, which looks at the module for how often to repeat keys and values."""
    if getattr(_HERE, "is_on", False):
        module = SimpleNamespace(is_causal=getattr(module, "is_causal", True))  # type: ignore[assignment]
    return sdpa_attention_forward(module, *states, **options)
