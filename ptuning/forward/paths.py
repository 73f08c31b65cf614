"""Computes the label logits of a batch by one of two paths, which give the same numbers.

`splice` is the reference: it puts the virtual tokens' embeddings in their places, and the model reads each whole row.
`shared_prefix` is the fast path: it runs the prefix of all rows (virtual tokens and words) once, and puts its keys and
values before the rest of each row. Knows nothing of losses, training or what labels mean.
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
        prompt: The virtual tokens' embeddings, or a prompt encoder.
        batch: Rows on the backbone's device.
        path: splice, shared_prefix, or auto: shared_prefix where the model and the rows allow it, else splice.

    Returns:
        `[N, V]` fp32, in row order.

    Raises:
        DataError: If a row has more tokens than the model has positions; nothing is run then.
        ModelError: If the path is shared_prefix and the model does not support it.
    """
    backbone.require_room(batch.ids_BT.shape[1])
    require_path(backbone, path)
    return splice(backbone, prompt, batch) if path == "splice" else shared_prefix(backbone, prompt, batch)


def require_path(backbone: Backbone, path: str) -> None:
    """Raises `ModelError` if the model does not support the path."""
    if path == "shared_prefix" and not backbone.can_keep_prefix:
        raise ModelError(
            f"forward: shared_prefix with {backbone.name}",
            "a causal model with attention layers only, without activation checkpointing",
            "Use forward: auto",
        )
