"""What training and answering cost at least: floating-point operations, counted from a model's shape.

Nothing is run. For dense causal models; a mixture of experts runs fewer of its weights than are counted here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Rows:
    """What is read: rows of text behind the same leading tokens."""

    num_prefix_tokens: int
    """Leading tokens that all rows share, virtual ones and words; the method runs them once."""
    rest: Sequence[int]
    """How many tokens each row has behind them, up to the last one whose logits are needed."""
    num_scored: int
    """Positions whose logits are needed."""

    @property
    def num_tokens(self) -> int:
        """Tokens that must be run."""
        return self.num_prefix_tokens + sum(self.rest)

    @property
    def num_pairs(self) -> int:
        """Pairs of a token and one that it attends to."""
        shared = self.num_prefix_tokens * (self.num_prefix_tokens + 1) // 2
        return shared + sum(n * self.num_prefix_tokens + n * (n + 1) // 2 for n in self.rest)


def layer_weights(model: Any) -> int:
    """Weights of the linear layers but for the head's: each is multiplied with every token."""
    head = model.get_output_embeddings()
    linear = [each for each in model.modules() if isinstance(each, nn.Linear | Conv1D) and each is not head]
    return sum(each.weight.numel() for each in linear)


def forward_flops(model: Any, rows: Rows) -> int:
    """Operations of a forward pass that the method cannot avoid, with every layer counted whole.

    Of the last one, what is computed at tokens that are not scored could be left out.

    Two per weight and token; two per pair of tokens, layer and element of a query, for the scores and again for what
    they weigh; two per weight of the head and scored position.
    """
    config = model.config.get_text_config()
    width = _head_dim(config) * config.num_attention_heads
    attention = 4 * rows.num_pairs * config.num_hidden_layers * width
    return 2 * layer_weights(model) * rows.num_tokens + attention + _head_flops(config, rows)


def training_flops(model: Any, rows: Rows) -> int:
    """Operations of a forward and a backward pass that the method cannot avoid, counted as above.

    The weights are frozen, so that gradients flow through activations alone: as much again as the forward pass, and for
    attention, where both factors have gradients, twice as much.
    """
    config = model.config.get_text_config()
    width = _head_dim(config) * config.num_attention_heads
    attention = 4 * rows.num_pairs * config.num_hidden_layers * width
    return 2 * forward_flops(model, rows) + attention


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _head_flops(config: Any, rows: Rows) -> int:
    return 2 * config.hidden_size * config.vocab_size * rows.num_scored


def kept_bytes(model: Any, rows: Rows, element_bytes: int = 2) -> int:
    """What a forward pass keeps for the backward pass, for decoder layers like Llama's with a kernel for attention.

    A token and layer: the input of both norms in fp32, query, key, value and attended value, and three times the width
    of the gated network. Keys and values of what rows share are kept once for each row.
    """
    config = model.config.get_text_config()
    width = _head_dim(config) * config.num_attention_heads
    token = 8 * config.hidden_size + element_bytes * (4 * width + 3 * config.intermediate_size)
    spread = 2 * element_bytes * width * rows.num_prefix_tokens * len(rows.rest)
    return config.num_hidden_layers * (rows.num_tokens * token + spread)


def prefix_bytes(model: Any, num_prefix_tokens: int, element_bytes: int = 2) -> int:
    """Keys and values that are held of a prompt."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * _head_dim(config) * num_prefix_tokens * element_bytes
