"""Loads the frozen language model, fingerprints it, finds out what it supports, and runs it.

`Backbone` is the protocol and `families` lists its implementations. `kernels` holds faster versions of torch's
functions. Knows nothing of prompts.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.model.backbone import OVERHEAD_TOKENS as OVERHEAD_TOKENS
    from ptuning.model.checkpointing import is_checkpointed as is_checkpointed
    from ptuning.model.families import Backbone as Backbone
    from ptuning.model.families import CausalBackbone as CausalBackbone
    from ptuning.model.families import EncoderDecoderBackbone as EncoderDecoderBackbone
    from ptuning.model.fingerprint import Fingerprint as Fingerprint
    from ptuning.model.hub import hub_answers as hub_answers
    from ptuning.model.hub import is_hub_name as is_hub_name
    from ptuning.model.loading import quietly as quietly
    from ptuning.model.memory import is_out_of_memory as is_out_of_memory
    from ptuning.model.memory import release_cached_memory as release_cached_memory

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "backbone": ("OVERHEAD_TOKENS",),
        "checkpointing": ("is_checkpointed",),
        "families": ("Backbone", "CausalBackbone", "EncoderDecoderBackbone"),
        "fingerprint": ("Fingerprint",),
        "hub": ("hub_answers", "is_hub_name"),
        "loading": ("quietly",),
        "memory": ("is_out_of_memory", "release_cached_memory"),
    },
)
