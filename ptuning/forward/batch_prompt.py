"""The soft prompt of a batch, in each of the forms that the forward pass takes.

Knows nothing of tasks, names or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from ptuning.data import Batch
from ptuning.forward.prefix_cache import Prefix
from ptuning.model import CausalBackbone


@dataclass(frozen=True)
class RowPrompts:
    """One soft prompt a row, chosen among several that have been run."""

    prompts: Sequence[Tensor]
    """The K prompts' embeddings, each `[P, H]` with its own P."""
    prefixes: Sequence[Prefix]
    """What was kept of what each one's rows begin with; empty where the model can keep nothing."""
    choice: tuple[int, ...]
    """Which of the K each row has."""

    @classmethod
    def same(cls, prompt_PH: Tensor, prefix: Prefix, num_rows: int) -> "RowPrompts":
        """One prompt for all rows."""
        return cls([prompt_PH], [prefix], (0,) * num_rows)

    @property
    def num_run(self) -> tuple[int, ...]:
        """How many leading tokens of each row have been run."""
        return tuple(len(self.prefixes[k].ids) for k in self.choice)

    def begins(self, batch: Batch) -> bool:
        """Whether each row of a batch begins with its prefix, no position of which is scored."""
        if not self.prefixes or not any(self.num_run):
            return False
        if any(own < num for own, num in zip(batch.num_unscored, self.num_run, strict=True)):
            return False
        device, length = batch.ids_BT.device, max(self.num_run)
        order_BS = batch.mask_BT.argsort(dim=1, descending=True, stable=True)[:, :length]
        chosen = [torch.tensor(self.prefixes[k].ids, dtype=torch.long) for k in self.choice]
        expected_BS = pad_sequence(chosen, batch_first=True).to(device)
        is_run_BS = torch.arange(length, device=device) < torch.tensor(self.num_run, device=device)[:, None]
        return bool(((batch.ids_BT.gather(1, order_BS) == expected_BS) | ~is_run_BS).all())

    @property
    def embeddings(self) -> Tensor:
        """`[P, H]` where all rows have the same prompt; else each row's, padded behind to the longest: `[B, P, H]`."""
        if len(self.prompts) == 1:
            return self.prompts[0]
        return pad_sequence(list(self.prompts), batch_first=True)[self._choice_on(self.prompts[0].device)]

    def _choice_on(self, device: torch.device) -> Tensor:
        return torch.tensor(self.choice, device=device)

    def spread(self, backbone: CausalBackbone, num_empty: int = 0) -> tuple[DynamicCache, Tensor]:
        """A cache for one forward, `B` rows of the longest prefix's length and `num_empty` more, and its mask `[B, P]`.

        Shorter prefixes are padded in front, so that text follows each directly and a sliding window sees what it
        should.
        """
        length = max(self.num_run) + num_empty
        some = next(prefix for prefix in self.prefixes if prefix.ids)
        none = tuple((keys[:, :, :0], values[:, :, :0]) for keys, values in some.layers)
        cache, rows_B = backbone.new_cache(), self._choice_on(backbone.device)
        for i, layer in enumerate(zip(*(prefix.layers or none for prefix in self.prefixes), strict=True)):
            keys, values = (_of_rows(each, length, rows_B) for each in zip(*layer, strict=True))
            cache.update(keys, values, i)
        num_padded_B = length - torch.tensor(self.num_run, device=backbone.device)
        return cache, (torch.arange(length, device=backbone.device) >= num_padded_B[:, None]).long()


def _of_rows(states: Sequence[Tensor], length: int, rows_B: Tensor) -> Tensor:
    """K prompts' keys or values `[1, heads, S, D]` as those of the rows, `[B, heads, length, D]`."""
    if len(states) == 1:  # one for all rows: a view of it
        return repeat(_behind_empty(states[0], length), "1 n s d -> b n s d", b=len(rows_B))
    return torch.cat([_behind_empty(each, length) for each in states])[rows_B]


def _behind_empty(states: Tensor, length: int) -> Tensor:
    """Keys or values padded in front to a length, with 0."""
    return functional.pad(states, (0, 0, length - states.shape[2], 0))
