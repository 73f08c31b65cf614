"""The families of language models: importing this module registers them all.

A new family is a module of its own and a line here.
"""

from ptuning.model.backbone import Backbone as Backbone
from ptuning.model.causal import CausalBackbone as CausalBackbone
from ptuning.model.encoder_decoder import EncoderDecoderBackbone as EncoderDecoderBackbone
