"""The model that is measured: a loaded one, or a random one of a named shape, made where it will run.

Knows nothing of prompts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import ptuning
from ptuning.model.kernels import prefer_own_attention


def _llama(layers: int, width: int, heads: int, key_heads: int, inner: int, **others: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": inner,
        **others,
    }


SHAPES = {
    "22x64": _llama(22, 64, 4, 2, 128),  # small enough to count a deep model's operators on a CPU
    "135m": _llama(30, 576, 9, 3, 1536, tie_word_embeddings=True),  # SmolLM2-135M
    "1b": _llama(16, 2048, 32, 8, 8192),
    "3b": _llama(28, 3072, 24, 8, 8192),
    "8b": _llama(32, 4096, 32, 8, 14336),
}


def backbone(base: str, shape: str | None, dtype: str, device: str, is_ours: bool) -> ptuning.Backbone:
    """A frozen model with its tokenizer, with the attention that ptuning prefers or with transformers' own.

    Args:
        base: A model directory; only the tokenizer of it is read for a random model.
        shape: One of `SHAPES`; None: the base itself.
        dtype: Precision of the weights.
        device: Where the model is.
        is_ours: Whether it is ptuning's side.
    """
    if shape is None:
        found = ptuning.Backbone.from_pretrained(base, dtype, device)
        if not is_ours:
            _prefer_transformers_own(found.model)
        return found
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = random_model(shape, len(tokenizer), dtype, device)
    if is_ours:
        prefer_own_attention(model)
    return ptuning.Backbone.of(model, tokenizer, f"random-{shape}")


def random_model(shape: str, vocab_size: int, dtype: str, device: str) -> Any:
    """A Llama with random weights, drawn on the device in the precision; the same at each call."""
    config = LlamaConfig(vocab_size=vocab_size, max_position_embeddings=8192, **SHAPES[shape])
    torch.manual_seed(0)
    with torch.device(device), _default(getattr(torch, dtype)):
        model = LlamaForCausalLM(config)
    return model


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _prefer_transformers_own(model: Any) -> None:
    """Undoes `prefer_own_attention`."""
    config = model.config.get_text_config()
    if config._attn_implementation.startswith("ptuning"):
        config._attn_implementation = "sdpa"
