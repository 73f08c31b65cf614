"""Faster ways to torch's own functions, taken by one call in one thread; no module of a model is changed.

Knows nothing of prompts.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.model.kernels.attention import FILLED_TO as FILLED_TO
    from ptuning.model.kernels.attention import SharedHead as SharedHead
    from ptuning.model.kernels.attention import num_filling as num_filling
    from ptuning.model.kernels.last_layer import decoder_layers as decoder_layers
    from ptuning.model.kernels.last_layer import only_scored as only_scored
    from ptuning.model.kernels.switch import FastKernels as FastKernels
    from ptuning.model.kernels.switch import fast_kernels as fast_kernels

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "attention": ("FILLED_TO", "SharedHead", "num_filling"),
        "last_layer": ("decoder_layers", "only_scored"),
        "switch": ("FastKernels", "fast_kernels"),
    },
)
