"""Label logits of a batch, two ways to the same numbers, and what rows can be continued from.

`splice` is the definition: the virtual tokens' embeddings are put in their places and the model reads the whole row.
`shared_prefix` is the fast way: what all rows of a prompt begin with, virtual tokens and words, is run once and its
keys and values are put before the rest of each row. Knows nothing of losses, labels' meaning or training.
"""

from torch import Tensor

from ptuning.data import Batch
from ptuning.errors import ModelError
from ptuning.forward.batch_prompt import Prompt
from ptuning.forward.shared_prefix import shared_prefix
from ptuning.forward.splice import splice
from ptuning.model import Backbone


def label_logits(backbone: Backbone, prompt: Prompt, batch: Batch, path: str = "auto") -> Tensor:
    """Logits at the batch's scored positions.

    Args:
        backbone: The frozen model.
        prompt: The virtual tokens' embeddings, or what makes them.
        batch: Rows on the backbone's device.
        path: splice, shared_prefix, or auto: shared_prefix where the model's cache can be shared.

    Returns:
        `[N, V]` fp32, in row order.

    Raises:
        DataError: When a row is longer than the model's positions; nothing is run then.
        ModelError: When the path is shared_prefix and the model or the prompt cannot be run so.
    """
    backbone.require_room(batch.ids_BT.shape[1])
    require_path(backbone, path)
    return splice(backbone, prompt, batch) if path == "splice" else shared_prefix(backbone, prompt, batch)


def require_path(backbone: Backbone, path: str) -> None:
    """Raises `ModelError` when the model cannot be run by that path."""
    if path == "shared_prefix" and not backbone.can_keep_prefix:
        raise ModelError(
            f"forward: shared_prefix with {backbone.name}",
            "a causal model whose layers are all attention, not run again in the backward pass",
            "Use forward: auto",
        )
