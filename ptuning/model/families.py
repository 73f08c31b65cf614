"""The families of language models: importing this module registers them all.

A new family is one module and one line here. Knows nothing of prompts.
"""

from ptuning.model.backbone import Backbone as Backbone
from ptuning.model.causal import CausalBackbone as CausalBackbone
from ptuning.model.encoder_decoder import EncoderDecoderBackbone as EncoderDecoderBackbone
