"""Computes the label logits of a batch by one of several paths, which give the same numbers.

`splice` is the reference: it puts the virtual tokens' embeddings in their places, and the model reads each whole row.
The fast paths are `line_pass`, one pass over all rows and the prefix that they share, and `shared_prefix`, which runs
the prefix once and puts its keys and values before the rest of each row. Knows nothing of losses, training or what
labels mean.
"""

from torch import Tensor

from ptuning.data import Batch
from ptuning.errors import ModelError
from ptuning.forward.batch_prompt import BatchPrompt, Prompt, as_batch_prompt
from ptuning.forward.line_pass import in_row_order, lay_out, line_logits
from ptuning.forward.lines import Lines
from ptuning.forward.shared_prefix import can_share, shared_prefix
from ptuning.forward.splice import splice
from ptuning.model import Backbone, CausalBackbone


def label_logits(backbone: Backbone, prompt: Prompt, batch: Batch, path: str = "auto") -> Tensor:
    """Logits at the batch's scored positions.

    Args:
        backbone: The frozen model.
        prompt: The virtual tokens' embeddings, or a prompt encoder.
        batch: The rows.
        path: splice, shared_prefix, or auto: the fastest that the model and the rows allow.

    Returns:
        `[N, V]` fp32, in row order.

    Raises:
        DataError: If a row has more tokens than the model has positions; nothing is run then.
        ModelError: If the path is shared_prefix and the model does not support it.
    """
    prompt = as_batch_prompt(prompt)
    lines = lines_for(backbone, prompt, batch, path)
    if lines is not None:
        assert isinstance(backbone, CausalBackbone)
        lines = lines.to(backbone.device)
        return in_row_order(backbone, line_logits(backbone, prompt.embeddings(backbone, batch), lines), lines)
    if path != "splice" and can_share(backbone, prompt, batch):
        assert isinstance(backbone, CausalBackbone)
        return shared_prefix(backbone, prompt, batch)
    return splice(backbone, prompt, batch)


def lines_for(backbone: Backbone, prompt: BatchPrompt, batch: Batch, path: str = "auto") -> Lines | None:
    """The rows as lines for one pass over all of them, on the CPU; None where another path is to be taken.

    Arguments and errors as in `label_logits`.
    """
    backbone.require_room(batch.num_columns)
    require_path(backbone, path)
    return None if path == "splice" else lay_out(backbone, prompt, batch)


def require_path(backbone: Backbone, path: str) -> None:
    """Raises `ModelError` if the model does not support the path."""
    if path == "shared_prefix" and not backbone.can_keep_prefix:
        raise ModelError(
            f"forward: shared_prefix with {backbone.name}",
            "a causal model with attention layers only, without activation checkpointing",
            "Use forward: auto",
        )
