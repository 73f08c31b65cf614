"""Faster versions of torch's own functions, used by one call in one thread; no module of a model is changed.

Knows nothing of prompts.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.model.kernels.attention import FILLED_TO as FILLED_TO
    from ptuning.model.kernels.attention import JointPrefix as JointPrefix
    from ptuning.model.kernels.attention import num_filling as num_filling
    from ptuning.model.kernels.interface import attends_by_name as attends_by_name
    from ptuning.model.kernels.interface import prefer_own_attention as prefer_own_attention
    from ptuning.model.kernels.last_layer import CutWeight as CutWeight
    from ptuning.model.kernels.last_layer import LastLayerCut as LastLayerCut
    from ptuning.model.kernels.last_layer import SomeTokens as SomeTokens
    from ptuning.model.kernels.last_layer import TokenLines as TokenLines
    from ptuning.model.kernels.last_layer import decoder_layers as decoder_layers
    from ptuning.model.kernels.last_layer import head_weight as head_weight
    from ptuning.model.kernels.last_layer import token_by_token_weights as token_by_token_weights
    from ptuning.model.kernels.switch import fast_kernels as fast_kernels
    from ptuning.model.kernels.switch import same_kernels as same_kernels

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "attention": ("FILLED_TO", "JointPrefix", "num_filling"),
        "interface": ("attends_by_name", "prefer_own_attention"),
        "last_layer": (
            "CutWeight",
            "LastLayerCut",
            "SomeTokens",
            "TokenLines",
            "decoder_layers",
            "head_weight",
            "token_by_token_weights",
        ),
        "switch": ("fast_kernels", "same_kernels"),
    },
)
