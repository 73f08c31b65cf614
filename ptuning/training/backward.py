"""The gradient of many rows, a part of them at a time: what they share is run once, forward and backward.

Memory is that of one part, however many rows there are. Knows nothing of optimizers, files, or how a prompt encoder
works inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ptuning.data import Example, by_length, require_small, prefix_ids
from ptuning.forward import Prefix, Prompt, RowPrompts, begin, can_begin, embeddings_of, loss_sum
from ptuning.model import Backbone


def backward_in_parts(
    backbone: Backbone,
    prompt: Prompt,
    examples: Sequence[Example],
    scale: float = 1.0,
    path: str = "auto",
    batch_size: int | None = None,
    max_batch_tokens: int | None = None,
) -> float:
    """Adds the gradient of `scale` times the summed loss of all rows to what made the prompt.

    The same as `(objective.loss_sum(...) * scale).backward()`, but for rounding; the encoder is run backward once.

    Args:
        backbone: The frozen model.
        prompt: What the prompt encoder made, `[P, H]`, or a conditioned encoder.
        examples: Rows with answers.
        scale: What the loss is multiplied by.
        path: The forward path, as in `forward.label_logits`.
        batch_size: The most rows read at once; None: no limit.
        max_batch_tokens: The most tokens read at once, padding and virtual tokens included; None: no limit.

    Returns:
        The summed loss, in nats.

    Raises:
        DataError: For a row that alone has more than `max_batch_tokens`.
    """
    require_small(examples, max_batch_tokens)
    if isinstance(prompt, Tensor):
        made = prompt
    else:  # a conditioned encoder reads all rows at once: it is small
        made = embeddings_of(prompt, backbone, backbone.collate(examples).to(backbone.device))
    ids = prefix_ids(examples)
    prefix_lengths = len(ids) if can_begin(backbone, made, ids, path) else 0
    parts = by_length(
        examples,
        batch_size or len(examples),
        max_batch_tokens,
        0,
        backbone.overhead_tokens,
        [prefix_lengths] * len(examples),
    )
    if len(parts) == 1:
        loss = loss_sum(backbone, made, backbone.collate(examples), path)
        (loss * scale).backward()
        return loss.item()
    shared, total = _Shared.of(made, begin(backbone, made, ids, path)), 0.0
    for rows in parts:
        batch = backbone.collate([examples[i] for i in rows])
        loss = loss_sum(backbone, shared.of_rows(rows), batch, path)
        (loss * scale).backward()
        total += loss.item()
    shared.backward()
    return total


@dataclass(frozen=True)
class _Shared:
    """What all parts of the rows use, cut off from what made it, so that each part can be run backward by itself."""

    made: tuple[Tensor, ...]
    """The prompt, and each layer's keys and values of the tokens that the rows begin with."""
    leaves: tuple[Tensor, ...]
    """The same values in fp32; the parts' gradients are added up in them."""
    ids: tuple[int, ...]
    """Ids of the tokens that the rows begin with."""

    @classmethod
    def of(cls, prompt: Tensor, prefix: Prefix | None) -> Self:
        prefix = prefix or Prefix((), ())
        made = (prompt, *(each for layer in prefix.layers for each in layer))
        return cls(made, tuple(each.detach().float().requires_grad_() for each in made), prefix.ids)

    def of_rows(self, rows: Sequence[int]) -> Tensor | RowPrompts:
        """The prompt of a part of the rows."""
        prompt, *states = (leaf.to(made.dtype) for leaf, made in zip(self.leaves, self.made, strict=True))
        if self.ids:
            prefix = Prefix(tuple(zip(states[0::2], states[1::2], strict=True)), self.ids)
            return RowPrompts.same(prompt, prefix, len(rows))
        return prompt if prompt.ndim == 2 else prompt[list(rows)]

    def backward(self) -> None:
        """Hands the added gradients on to what made the leaves."""
        gathered = [(made, leaf.grad) for made, leaf in zip(self.made, self.leaves, strict=True)]
        pairs = [(made, grad.to(made.dtype)) for made, grad in gathered if grad is not None and made.requires_grad]
        torch.autograd.backward([made for made, _ in pairs], [grad for _, grad in pairs])
