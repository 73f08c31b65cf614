"""What is learned and what is compared: the loss over label positions, and the scores of whole answers.

Knows nothing of optimizers, files or metrics.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ptuning.backbone import Backbone
from ptuning.data import Batch, Example, collate, with_answer
from ptuning.forward import label_logits


def loss(backbone: Backbone, prompt_PH: Tensor, batch: Batch, path: str = "auto") -> Tensor:
    """Mean cross-entropy over the batch's label tokens, in nats; a scalar with the prompt's gradient.

    Args:
        backbone: The frozen model.
        prompt_PH: What the prompt encoder made, `[P, H]`.
        batch: Rows with answers.
        path: The forward path, as in `forward.label_logits`.
    """
    return loss_sum(backbone, prompt_PH, batch, path) / len(batch.targets_N)


def loss_sum(backbone: Backbone, prompt_PH: Tensor, batch: Batch, path: str = "auto") -> Tensor:
    """Like `loss`, but the sum: the trainer divides by the label tokens of all batches and devices of a step."""
    batch = batch.to(backbone.device)
    return functional.cross_entropy(label_logits(backbone, prompt_PH, batch, path), batch.targets_N, reduction="sum")


def answer_scores(backbone: Backbone, prompt_PH: Tensor, batch: Batch, path: str = "auto") -> tuple[Tensor, Tensor]:
    """How likely each row's own answer is.

    Returns:
        Log-probability of the answer, summed over its tokens, `[B]`; and whether every token of it is the most likely
        one, so that greedy generation would write it, `[B]` bool.
    """
    batch = batch.to(backbone.device)
    logits_NV, targets_N = label_logits(backbone, prompt_PH, batch, path), batch.targets_N
    rows_N = batch.scored_BT.nonzero()[:, 0]
    token_scores_N = -functional.cross_entropy(logits_NV, targets_N, reduction="none")
    scores_B = token_scores_N.new_zeros(len(batch.ids_BT)).index_add(0, rows_N, token_scores_N)
    num_wrong_B = scores_B.new_zeros(len(scores_B)).index_add(0, rows_N, (logits_NV.argmax(1) != targets_N).float())
    return scores_B, num_wrong_B == 0


def label_scores(
    backbone: Backbone,
    prompt_PH: Tensor,
    examples: Sequence[Example],
    label_ids: Sequence[Sequence[int]],
    path: str = "auto",
) -> Tensor:
    """Log-probability of every label's whole text after every row: `[B, C]` fp32.

    One forward of B rows where every label is one token; otherwise one a label.

    Args:
        backbone: The frozen model.
        prompt_PH: `[P, H]`.
        examples: The rows; their own answers are not looked at.
        label_ids: The token ids of each label's text.
        path: The forward path.
    """
    if all(len(ids) == 1 for ids in label_ids):
        first_tokens_C = torch.tensor([ids[0] for ids in label_ids], device=backbone.device)
        questions = [with_answer(example, list(label_ids[0])) for example in examples]
        batch = collate(questions, backbone.pad_id).to(backbone.device)
        return label_logits(backbone, prompt_PH, batch, path).log_softmax(dim=1)[:, first_tokens_C]
    return whole_label_scores(backbone, prompt_PH, examples, label_ids, path)


def whole_label_scores(
    backbone: Backbone,
    prompt_PH: Tensor,
    examples: Sequence[Example],
    label_ids: Sequence[Sequence[int]],
    path: str = "auto",
) -> Tensor:
    """The reference of `label_scores`: every row with every label's text behind it."""
    columns = []
    for ids in label_ids:  # one label at a time, so that memory does not grow with the labels
        answered = [with_answer(example, list(ids)) for example in examples]
        scores_B, _ = answer_scores(backbone, prompt_PH, collate(answered, backbone.pad_id), path)
        columns.append(scores_B)
    return torch.stack(columns, dim=1)
