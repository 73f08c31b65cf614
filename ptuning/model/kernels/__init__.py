"""Faster versions of torch's own functions, used by one call in one thread; no module of a model is changed.

Knows nothing of prompts.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.model.kernels.attention import FILLED_TO as FILLED_TO
    from ptuning.model.kernels.attention import JointPrefix as JointPrefix
    from ptuning.model.kernels.attention import num_filling as num_filling
    from ptuning.model.kernels.grouped_query import prefer_unrepeated as prefer_unrepeated
    from ptuning.model.kernels.last_layer import CutWeight as CutWeight
    from ptuning.model.kernels.last_layer import LastLayerCut as LastLayerCut
    from ptuning.model.kernels.last_layer import decoder_layers as decoder_layers
    from ptuning.model.kernels.last_layer import token_by_token_weights as token_by_token_weights
    from ptuning.model.kernels.switch import FastKernels as FastKernels

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "attention": ("FILLED_TO", "JointPrefix", "num_filling"),
        "grouped_query": ("prefer_unrepeated",),
        "last_layer": ("CutWeight", "LastLayerCut", "decoder_layers", "token_by_token_weights"),
        "switch": ("FastKernels",),
    },
)
