"""The reference: every row whole, virtual tokens in their places.

Knows nothing of caches.
"""

from typing import TypeAlias

from torch import Tensor, nn

from ptuning.data import Batch
from ptuning.forward.batch_prompt import RowPrompts
from ptuning.forward.placement import place
from ptuning.model import Backbone

Prompt: TypeAlias = Tensor | RowPrompts | nn.Module
"""The soft prompt of a batch: `[P, H]` for all its rows, `[B, P, H]` with one a row, several that have been run with
each row's choice, or a conditioned encoder, which makes each row its own."""


def splice(backbone: Backbone, prompt: Prompt, batch: Batch) -> Tensor:
    """The reference: every row whole, virtual tokens in their places. Shapes as in `label_logits`."""
    return backbone.logits(place(backbone, embeddings_of(prompt, backbone, batch), batch.ids_BT), batch)


def embeddings_of(prompt: Prompt, backbone: Backbone, batch: Batch) -> Tensor:
    """The prompt's embeddings for the batch: `[P, H]`, or `[B, P, H]` with one prompt a row."""
    if isinstance(prompt, Tensor):
        return prompt
    if isinstance(prompt, RowPrompts):
        return prompt.embeddings
    return prompt(backbone.embed(batch.ids_BT.clamp(min=0)), batch.text_BT)
