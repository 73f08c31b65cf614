"""Leading virtual tokens run once: their keys and values, kept apart and put before the rows of a batch.

What stands before a row of a causal model does not depend on the row, so it is run at batch 1 and spread over the rows,
one prompt for all or one a row. Knows nothing of tasks, names or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from ptuning.backbone import CausalBackbone


@dataclass(frozen=True)
class Prefix:
    """What a causal model keeps of leading virtual tokens."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """Each layer's keys and values, `[1, heads, P, D]`; whole also where the layer's window is shorter."""
    length: int
    """P."""

    @classmethod
    def of(cls, backbone: CausalBackbone, prompt_PH: Tensor) -> "Prefix":
        """Runs virtual tokens at batch 1, with their gradient where there is one."""
        if not len(prompt_PH):
            return cls((), 0)
        cache = DynamicCache()  # without the model's configuration no layer forgets what is beyond its window
        backbone.run(
            inputs_embeds=prompt_PH.to(backbone.device, backbone.dtype)[None],
            position_ids=torch.arange(len(prompt_PH), device=backbone.device)[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cls(tuple((keys, values) for keys, values, _ in cache), len(prompt_PH))


@dataclass(frozen=True)
class RowPrompts:
    """One soft prompt a row, chosen among several that have been run."""

    prompts: Sequence[Tensor]
    """The K prompts' embeddings, each `[P, H]` with its own P."""
    prefixes: Sequence[Prefix]
    """What was kept of each one's leading virtual tokens; empty where the model can keep nothing."""
    choice: tuple[int, ...]
    """Which of the K each row has."""

    @property
    def num_leading(self) -> tuple[int, ...]:
        """How many virtual tokens of each row's prefix have been run."""
        return tuple(self.prefixes[k].length for k in self.choice)

    @property
    def embeddings(self) -> Tensor:
        """`[P, H]` where all rows have the same prompt; else each row's, padded behind to the longest: `[B, P, H]`."""
        if len(self.prompts) == 1:
            return self.prompts[0]
        return pad_sequence(list(self.prompts), batch_first=True)[list(self.choice)]

    def spread(self, backbone: CausalBackbone) -> tuple[DynamicCache, Tensor]:
        """A cache for one forward, `B` rows of the longest prefix's length, and its mask `[B, P]`.

        Shorter prefixes are padded in front, so that text follows each directly and a sliding window sees what it
        should.
        """
        length = max(prefix.length for prefix in self.prefixes)
        some = next(prefix for prefix in self.prefixes if prefix.length)
        none = tuple((keys[:, :, :0], values[:, :, :0]) for keys, values in some.layers)
        cache = backbone.new_cache()
        for i, layer in enumerate(zip(*(prefix.layers or none for prefix in self.prefixes), strict=True)):
            keys, values = (self._of_rows(each, length) for each in zip(*layer, strict=True))
            cache.update(keys, values, i)
        num_padded_B = length - torch.tensor(self.num_leading, device=backbone.device)
        return cache, (torch.arange(length, device=backbone.device) >= num_padded_B[:, None]).long()

    def _of_rows(self, states: Sequence[Tensor], length: int) -> Tensor:
        """K prompts' keys or values `[1, heads, P, D]` as those of the rows, `[B, heads, length, D]`."""
        if len(states) == 1:  # one for all rows: a view
            return repeat(states[0], "1 n p d -> b n p d", b=len(self.choice))
        padded = [functional.pad(each, (0, 0, length - each.shape[2], 0)) for each in states]
        return torch.cat(padded)[list(self.choice)]
