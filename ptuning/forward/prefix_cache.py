"""What rows begin with, run once: its keys and values, kept apart and put before the rows of a batch.

What stands before a row of a causal model does not depend on the row, so it is run at batch 1 and spread over the rows,
one prompt for all or one a row. Knows nothing of tasks, names or files.
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
    """What a causal model keeps of the tokens that rows begin with."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """Each layer's keys and values, `[1, heads, S, D]`; whole also where the layer's window is shorter."""
    ids: tuple[int, ...]
    """The S tokens; negative ids are virtual tokens."""

    @classmethod
    def of(cls, backbone: CausalBackbone, prompt_PH: Tensor, ids: Sequence[int]) -> "Prefix":
        """Runs tokens at batch 1, with the prompt's gradient where there is one."""
        if not ids:
            return cls((), ())
        ids_1S = torch.tensor([ids], device=backbone.device)
        cache = DynamicCache()  # without the model's configuration no layer forgets what is beyond its window
        backbone.fill(
            inputs_embeds=place(backbone, prompt_PH, ids_1S),
            position_ids=torch.arange(len(ids), device=backbone.device)[None],
            past_key_values=cache,
            use_cache=True,
        )
        return cls(tuple((keys, values) for keys, values, _ in cache), tuple(ids))
