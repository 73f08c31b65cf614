"""The gradient of many rows, a part of them at a time: what they share is run once, forward and backward.

What the model keeps is that of a part, whatever the number of rows. Knows nothing of encoders'
insides, optimizers or files.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ptuning.data import Batch, Example, by_length, prefix_ids, require_small
from ptuning.forward import (
    BatchPrompt,
    Lines,
    Prompt,
    TensorPrompt,
    as_batch_prompt,
    lines_for,
    loss_and_gradient,
    loss_sum,
    memory_explained,
)
from ptuning.model import Backbone, CausalBackbone

Pass: TypeAlias = Callable[[CausalBackbone, Tensor, Lines], tuple[Tensor, Tensor]]
"""Computes what `forward.loss_and_gradient` does."""
RowLoss: TypeAlias = Callable[[BatchPrompt, Batch, Sequence[int]], Tensor]
"""Computes the summed loss of some rows from their prompt, their batch and their places among all rows of the step."""


def backward_in_parts(
    backbone: Backbone,
    prompt: Prompt,
    examples: Sequence[Example],
    scale: float = 1.0,
    path: str = "auto",
    batch_size: int | None = None,
    max_batch_tokens: int | None = None,
    prefix: Sequence[int] | None = None,
    run: Pass = loss_and_gradient,
    loss_of: RowLoss | None = None,
) -> Tensor:
    """Adds the gradient of `scale` times the summed loss of all rows.

    The same as `(objective.loss_sum(...) * scale).backward()` up to rounding; the encoder runs backward once, at the
    end. Rows in one part are run by `run`; rows in several parts share a prefix that is run once.

    Args:
        backbone: The frozen model.
        prompt: What the prompt encoder made, `[P, H]`, or a conditioned encoder.
        examples: Rows with answers.
        scale: What the loss is multiplied by.
        path: The forward path, as in `forward.label_logits`.
        batch_size: The most rows read at once; None: no limit.
        max_batch_tokens: The most tokens read at once, padding and virtual tokens included; None: no limit.
        prefix: The ids that all rows are known to begin with; None: as many as these rows share.
        run: Computes the loss of lines and its gradient.
        loss_of: Computes another loss than the cross-entropy of the answers; `run` is left out then.

    Returns:
        The summed loss in nats, on the model's device; reading it waits for the device.

    Raises:
        DataError: For a row that alone has more than `max_batch_tokens`.
        OutOfMemoryError: When the device lacks memory for rows read at once.
    """
    require_small(examples, max_batch_tokens)
    with memory_explained(examples):
        made = as_batch_prompt(prompt).for_rows(backbone, examples)
    ids: Sequence[int] = ()
    if path != "splice" and backbone.can_keep_prefix:
        ids = prefix_ids(examples) if prefix is None else prefix
    parts = by_length(
        examples,
        batch_size or len(examples),
        max_batch_tokens,
        0,
        backbone.overhead_tokens,
        [len(ids) if made.has_prefix_to_run else 0] * len(examples),
    )
    if len(parts) == 1:
        with memory_explained(examples):
            batch = backbone.collate(examples).beginning_with(prefix)
            if loss_of is not None:
                return _passed_on(loss_of(made, batch, range(len(examples))), scale)
            return _whole(backbone, made, batch, scale, path, run)
    with memory_explained(examples[:1]):  # a prefix is no longer than any row
        shared = PromptApart(made.with_prefix_run(backbone, ids, len(examples)))
    losses = []
    for rows in parts:
        own = [examples[i] for i in rows]
        with memory_explained(own):
            part, batch = shared.of_rows(rows), backbone.collate(own)
            loss = loss_of(part, batch, rows) if loss_of else loss_sum(backbone, part, batch, path)
            losses.append(_passed_on(loss, scale))
    shared.backward()
    return torch.stack(losses).sum()


def _whole(backbone: Backbone, made: TensorPrompt, batch: Batch, scale: float, path: str, run: Pass) -> Tensor:
    """Adds the gradient of all rows at once, and returns their loss."""
    lines = lines_for(backbone, made, batch, path)
    if lines is None:
        return _passed_on(loss_sum(backbone, made, batch, path), scale)
    assert isinstance(backbone, CausalBackbone)
    embeddings = made.embeddings(backbone, batch)
    loss, gradient = run(backbone, embeddings, lines.to(backbone.device))
    if embeddings.requires_grad:
        torch.autograd.backward(embeddings, torch.mul(gradient, scale))
    return loss


def _passed_on(loss: Tensor, scale: float) -> Tensor:
    """Adds the gradient of a loss, and returns it."""
    (loss * scale).backward()
    return loss.detach()


class PromptApart:
    """A prompt cut off from the encoder that computed it: each part of the rows has its own backward pass behind it.

    The encoder is run once, forward and backward, however many parts there are and however often they are tried;
    processes that train together then exchange its gradient once.

    Args:
        made: The prompt of all rows, with its prefix run if the model can keep one.
    """

    def __init__(self, made: TensorPrompt) -> None:
        self._made, self._leaves = made, list[Tensor]()
        self.anew()

    def anew(self) -> TensorPrompt:
        """The whole prompt; whatever was gathered so far is forgotten."""
        self._leaves = [each.detach().float().requires_grad_() for each in self._made.tensors]  # fp32: to gather in
        return self._whole()

    def of_rows(self, rows: Sequence[int]) -> BatchPrompt:
        """The prompt of some of the rows."""
        return self._whole().part(rows)

    def _whole(self) -> TensorPrompt:
        numbers = [leaf.to(made.dtype) for leaf, made in zip(self._leaves, self._made.tensors, strict=True)]
        return self._made.with_tensors(numbers)

    def backward(self) -> None:
        """Passes the summed gradients on to the encoder, in one backward pass."""
        gathered = [(made, leaf.grad) for made, leaf in zip(self._made.tensors, self._leaves, strict=True)]
        pairs = [(made, grad.to(made.dtype)) for made, grad in gathered if grad is not None and made.requires_grad]
        torch.autograd.backward([made for made, _ in pairs], [grad for _, grad in pairs])
