"""Writes virtual tokens into rows of a model's vocabulary, so that their ids are embedded as the soft prompt.

Knows nothing of tokenizers or files.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ptuning.errors import ModelError
from ptuning.model import Backbone

_NEVER = -1e4  # of an output bias: no logit outweighs it, and every precision can hold it
_MOST_UNITS = 4  # in the last place, relative to the largest number, that a row may differ from what it should be


@torch.no_grad()
def write_rows(backbone: Backbone, ids: Sequence[int], prompt_PH: Tensor) -> float:
    """Makes ids embed to a prompt; the vocabulary gets more rows where the ids need them.

    The output layer: where it shares the input embeddings, it has the same rows. An own output layer keeps its rows for
    the ids that it has, gets zeros for new ones, and where it has biases, one that rules each of the ids out.

    Args:
        backbone: The base, whose model is changed.
        ids: P different ids.
        prompt_PH: The embeddings that the model shall see for them.

    Returns:
        The largest difference between what it sees and the prompt in the model's precision, relative to the prompt's
        largest number; 0.0 where the model only looks rows up.

    Raises:
        ModelError: If the model's embeddings are more than scaled rows.
    """
    model, num_before = backbone.model, backbone.model.get_input_embeddings().num_embeddings
    if max(ids) >= num_before:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
        _empty_output_rows(model, num_before)
    ids_P = torch.tensor(ids, device=backbone.device)
    seen_PH = prompt_PH.to(backbone.device, backbone.dtype)
    weight = model.get_input_embeddings().weight
    weight[ids_P] = _stored_rows(backbone, ids_P, seen_PH)
    difference = float((backbone.embed(ids_P) - seen_PH).abs().max() / seen_PH.abs().max().clamp(min=1e-30))
    if difference > _MOST_UNITS * torch.finfo(backbone.dtype).eps:
        raise ModelError(
            f"{backbone.name}, whose embeddings are not rows of its vocabulary times a number",
            "a model in which a row can become a virtual token",
            "Export the prompt as an array",
        )
    _rule_out(model, ids)
    return difference


def _stored_rows(backbone: Backbone, ids_P: Tensor, seen_PH: Tensor) -> Tensor:
    """The rows that the embedding module turns into `seen_PH`: some models multiply them by a number.

    Product and quotient are rounded, so the model sees some numbers one unit in the last place beside the prompt's.
    """
    weight = backbone.model.get_input_embeddings().weight
    weight[ids_P] = 1.0
    return (seen_PH.double() / backbone.embed(ids_P).double()).to(weight.dtype)


def _empty_output_rows(model: Any, num_before: int) -> None:
    """Sets the new rows of an output layer of its own to zero."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        head.weight[num_before:] = 0.0


def _rule_out(model: Any, ids: Sequence[int]) -> None:
    """Keeps ids from being generated where the output layer has biases."""
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        bias[list(ids)] = _NEVER
