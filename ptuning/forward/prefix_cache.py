"""Runs a prefix once and keeps its keys and values, to be put before the rows of a batch.

In a causal model a prefix does not depend on the text after it. It is run with a batch size of 1 and shared by all rows
that begin with it. Knows nothing of tasks, names or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from ptuning.forward.placement import place
from ptuning.model import CausalBackbone


@dataclass(frozen=True)
class Prefix:
    """The keys and values of a prefix in a causal model."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """The keys and values of each layer, `[1, heads, S, D]`; all S of them, even if the layer's window is shorter."""
    ids: tuple[int, ...]
    """The S token ids; negative ids are virtual tokens."""

    @classmethod
    def of(cls, backbone: CausalBackbone, prompt_PH: Tensor, ids: Sequence[int]) -> "Prefix":
        """Runs the tokens with a batch size of 1; gradients flow back to the prompt."""
        if not ids:
            return cls((), ())
        ids_1S = torch.tensor([ids], device=backbone.device)
        cache = DynamicCache()  # without the model's config, no layer drops what is outside its window
        backbone.fill(
            inputs_embeds=place(backbone, prompt_PH, ids_1S),
            position_ids=torch.arange(len(ids), device=backbone.device)[None],
            past_key_values=cache,
            use_cache=True,
        )
        return cls(tuple((keys, values) for keys, values, _ in cache), tuple(ids))
