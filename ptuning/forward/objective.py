"""What is learned and what is compared: the loss over label positions, and the scores of whole answers.

Knows nothing of optimizers, files or metrics.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ptuning.data import Batch, Example, with_answer
from ptuning.forward.batch_prompt import KeptPrompts, Prompt, as_batch_prompt
from ptuning.forward.candidates import candidate_log_probs, widest
from ptuning.forward.paths import label_logits
from ptuning.forward.shared_prefix import can_pack
from ptuning.model import Backbone, CausalBackbone


def loss(backbone: Backbone, prompt: Prompt, batch: Batch, path: str = "auto") -> Tensor:
    """Mean cross-entropy over the batch's label tokens, in nats; a scalar with the prompt's gradient.

    Args:
        backbone: The frozen model.
        prompt: What the prompt encoder made, `[P, H]`, or another form that `forward.Prompt` allows.
        batch: Rows with answers.
        path: The forward path, as in `forward.label_logits`.
    """
    return loss_sum(backbone, prompt, batch, path) / len(batch.targets_N)


def loss_sum(backbone: Backbone, prompt: Prompt, batch: Batch, path: str = "auto") -> Tensor:
    """Like `loss`, but the sum: the trainer divides by the label tokens of all batches and devices of a step."""
    batch = batch.to(backbone.device)
    return functional.cross_entropy(label_logits(backbone, prompt, batch, path), batch.targets_N, reduction="sum")


def answer_log_probs(backbone: Backbone, prompt: Prompt, batch: Batch, path: str = "auto") -> tuple[Tensor, Tensor]:
    """How likely each row's own answer is.

    Returns:
        Log-probability of the answer, summed over its tokens, `[B]`; and whether every token of it is the most likely
        one, so that greedy generation would write it, `[B]` bool.
    """
    batch = batch.to(backbone.device)
    logits_NV, targets_N = label_logits(backbone, prompt, batch, path), batch.targets_N
    rows_N = batch.scored_BT.nonzero()[:, 0]
    token_scores_N = -functional.cross_entropy(logits_NV, targets_N, reduction="none")
    scores_B = token_scores_N.new_zeros(len(batch.ids_BT)).index_add(0, rows_N, token_scores_N)
    num_wrong_B = scores_B.new_zeros(len(scores_B)).index_add(0, rows_N, (logits_NV.argmax(1) != targets_N).float())
    return scores_B, num_wrong_B == 0


def label_log_probs(
    backbone: Backbone,
    prompt: Prompt,
    examples: Sequence[Example],
    label_ids: Sequence[Sequence[Sequence[int]]],
    path: str = "auto",
) -> Tensor:
    """Log-probability of every label's whole text after every row: `[B, C]` fp32.

    One forward of B rows where every label is one token. Otherwise, for prompts that have been run, the rows once and
    then all labels behind them; for others, and where that cannot be, a forward a label.

    Args:
        backbone: The frozen model.
        prompt: As in `loss`.
        examples: The rows; their own answers are not looked at.
        label_ids: For each row, the token ids of each of its labels' texts. C is the most that a row has; those that
            others lack score -inf.
        path: The forward path.
    """
    prompt = as_batch_prompt(prompt)
    if any(len(ids) > 1 for labels in label_ids for ids in labels):
        if path != "splice" and isinstance(prompt, KeptPrompts) and isinstance(backbone, CausalBackbone):
            rows, num_more = backbone.collate(examples).to(backbone.device), widest(label_ids)
            if prompt.shares(rows) and can_pack(backbone, prompt, rows, num_more):
                backbone.require_room(rows.ids_BT.shape[1] + max(len(ids) for labels in label_ids for ids in labels))
                return candidate_log_probs(backbone, prompt, examples, label_ids)
        return whole_label_log_probs(backbone, prompt, examples, label_ids, path)
    most = max(map(len, label_ids))
    first_BC = torch.tensor([[*(ids[0] for ids in labels), *[-1] * (most - len(labels))] for labels in label_ids])
    first_BC = first_BC.to(backbone.device)
    questions = [with_answer(each, list(labels[0])) for each, labels in zip(examples, label_ids, strict=True)]
    batch = backbone.collate(questions).to(backbone.device)
    scores_BV = label_logits(backbone, prompt, batch, path).log_softmax(dim=1)
    return scores_BV.gather(1, first_BC.clamp(min=0)).masked_fill(first_BC < 0, -torch.inf)


def whole_label_log_probs(
    backbone: Backbone,
    prompt: Prompt,
    examples: Sequence[Example],
    label_ids: Sequence[Sequence[Sequence[int]]],
    path: str = "auto",
) -> Tensor:
    """The reference of `label_log_probs`: every row with every label's text behind it."""
    columns = []
    for c in range(max(map(len, label_ids))):  # one label at a time, so that memory does not grow with the labels
        answers = [list(labels[min(c, len(labels) - 1)]) for labels in label_ids]
        batch = backbone.collate([with_answer(*each) for each in zip(examples, answers, strict=True)])
        scores_B, _ = answer_log_probs(backbone, prompt, batch, path)
        has_label_B = torch.tensor([c < len(labels) for labels in label_ids], device=scores_B.device)
        columns.append(scores_B.masked_fill(~has_label_B, -torch.inf))
    return torch.stack(columns, dim=1)
