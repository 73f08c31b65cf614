"""What a study compares soft prompts with: PEFT's prompts, LoRA, and all weights.

PEFT's prompts are its own modules, initialised by it; ptuning's forward pass gives the loss and the gradient of PEFT's,
in less time. LoRA and all weights are trained as in `ptuning compare`. Knows nothing of tasks, loops or files.
"""

from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ptuning.comparison import Weights
from ptuning.model import Backbone
from ptuning.prompts import PromptEncoder


def peft_encoder(kind: str, backbone: Backbone, num_virtual_tokens: int) -> PromptEncoder:
    """PEFT's own trainable module for a prompt; its call gives `[P, H]`.

    Args:
        kind: `peft_prompt_tuning` (from the vocabulary, which is better than at random) or `peft_p_tuning` (an MLP).
        backbone: The frozen model.
        num_virtual_tokens: P.
    """
    shared: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": num_virtual_tokens}
    config: peft.PromptLearningConfig
    if kind == "peft_prompt_tuning":
        config = peft.PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **shared)
    else:
        config = peft.PromptEncoderConfig(encoder_hidden_size=backbone.width, **shared)
    model = peft.get_peft_model(backbone.model, config)
    encoder = model.prompt_encoder["default"]
    return _PeftPrompt(encoder, num_virtual_tokens, backbone.width).float()


class _PeftPrompt(PromptEncoder):
    """PEFT's module, called with the indices of all virtual tokens."""

    def __init__(self, encoder: nn.Module, num_virtual_tokens: int, width: int) -> None:
        super().__init__(torch.empty(num_virtual_tokens, width))
        self.encoder = encoder
        self.register_buffer("indices_P", torch.arange(num_virtual_tokens))

    def forward(self) -> Tensor:
        prompt_PH: Tensor = self.encoder(self.indices_P)
        return prompt_PH


def trained_weights(name_or_path: str, kind: str, pad_id: int, device: torch.device) -> Weights:
    """A language model that is trained itself: by LoRA on all linear layers, or all of it.

    LoRA's frozen weights are bfloat16; all weights are float32, with autocast to bfloat16.

    Args:
        name_or_path: The model.
        kind: `lora` or `all_weights`.
        pad_id: What shorter rows are filled with.
        device: Where it runs.
    """
    dtype = torch.bfloat16 if kind == "lora" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype)
    return Weights(model.to(device), kind, pad_id, is_mixed=kind == "all_weights")
