"""The reference path: the model reads every row whole, with virtual tokens in their places.

Knows nothing of caches.
"""

from torch import Tensor

from ptuning.data import Batch
from ptuning.forward.batch_prompt import Prompt, as_batch_prompt
from ptuning.forward.placement import place
from ptuning.model import Backbone


def splice(backbone: Backbone, prompt: Prompt, batch: Batch) -> Tensor:
    """Reads every row whole, with virtual tokens in their places. Shapes as in `label_logits`."""
    batch = batch.to(backbone.device)
    prompts = as_batch_prompt(prompt).embeddings(backbone, batch)
    return backbone.logits(place(backbone, prompts, batch.ids_BT), batch)
