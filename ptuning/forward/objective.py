"""Computes the training loss over label positions, and the log-probabilities of whole answers.

Knows nothing of optimizers, files or metrics.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ptuning.data import Batch, Example, moved, with_answer
from ptuning.forward.batch_prompt import KeptPrompts, Prompt, as_batch_prompt
from ptuning.forward.candidates import candidate_log_probs, max_tail_tokens
from ptuning.forward.line_pass import lines_loss
from ptuning.forward.numbers import require_numbers
from ptuning.forward.paths import label_logits, lines_for
from ptuning.forward.shared_prefix import can_pack
from ptuning.model import Backbone, CausalBackbone


def loss(backbone: Backbone, prompt: Prompt, batch: Batch, path: str = "auto") -> Tensor:
    """Mean cross-entropy over the batch's label tokens, in nats; a scalar whose gradient reaches the prompt.

    Args:
        backbone: The frozen model.
        prompt: The prompt encoder's output, `[P, H]`, or another form of `forward.Prompt`.
        batch: Rows with answers.
        path: The forward path, as in `forward.label_logits`.
    """
    return loss_sum(backbone, prompt, batch, path) / len(batch.targets)


def loss_sum(backbone: Backbone, prompt: Prompt, batch: Batch, path: str = "auto") -> Tensor:
    """Like `loss`, but summed: the trainer divides by the number of label tokens in a step, on all devices."""
    prompt, batch = as_batch_prompt(prompt), batch.to(backbone.device)
    lines = lines_for(backbone, prompt, batch, path)
    if lines is not None:
        assert isinstance(backbone, CausalBackbone)
        return lines_loss(backbone, prompt.embeddings(backbone, batch), lines.to(backbone.device))
    return functional.cross_entropy(label_logits(backbone, prompt, batch, path), batch.targets_N, reduction="sum")


def answer_log_probs(backbone: Backbone, prompt: Prompt, batch: Batch, path: str = "auto") -> tuple[Tensor, Tensor]:
    """The log-probability of each row's own answer.

    Returns:
        The log-probability of the answer in nats, summed over its tokens, `[B]`; and whether every token is the most
        likely one, so greedy generation would write the answer, `[B]` bool.

    Raises:
        ModelError: For scores that are not numbers.
    """
    batch = batch.to(backbone.device)
    logits_NV, targets_N = label_logits(backbone, prompt, batch, path), batch.targets_N
    rows = [b for b, each in enumerate(batch.examples) for _ in each.answer_ids]
    rows_N = moved(torch.tensor(rows, dtype=torch.long), backbone.device)
    token_log_probs_N = -functional.cross_entropy(logits_NV, targets_N, reduction="none")
    zeros_B = token_log_probs_N.new_zeros(len(batch))
    log_probs_B = require_numbers(backbone, zeros_B.index_add(0, rows_N, token_log_probs_N))
    num_wrong_B = zeros_B.index_add(0, rows_N, (logits_NV.argmax(1) != targets_N).float())
    return log_probs_B, num_wrong_B == 0


def label_log_probs(
    backbone: Backbone,
    prompt: Prompt,
    examples: Sequence[Example],
    label_ids: Sequence[Sequence[Sequence[int]]],
    path: str = "auto",
) -> Tensor:
    """Log-probability of every label's whole text after every row: `[B, C]` fp32, in nats.

    If every label is one token, this is one forward pass over the B rows. If some labels are longer and the prompt's
    prefix has been run, the rows are run once and all labels are read after them. Otherwise there is one forward pass
    per label.

    Args:
        backbone: The frozen model.
        prompt: As in `loss`.
        examples: The rows; their own answers are ignored.
        label_ids: For each row, the token ids of each label's text. C is the largest number of labels of a row; rows
            with fewer labels get -inf in the last columns.
        path: The forward path, as in `forward.label_logits`.

    Raises:
        ModelError: For scores that are not numbers.
    """
    prompt = as_batch_prompt(prompt)
    if any(len(ids) > 1 for labels in label_ids for ids in labels):
        if path != "splice" and isinstance(prompt, KeptPrompts) and isinstance(backbone, CausalBackbone):
            rows, num_more = backbone.collate(examples), max_tail_tokens(label_ids)
            if prompt.shares(rows) and can_pack(backbone, prompt, rows, num_more):
                backbone.require_room(rows.num_columns + max(len(ids) for labels in label_ids for ids in labels))
                return require_numbers(backbone, candidate_log_probs(backbone, prompt, examples, label_ids))
        return whole_label_log_probs(backbone, prompt, examples, label_ids, path)
    most = max(map(len, label_ids))
    first_BC = torch.tensor([[*(ids[0] for ids in labels), *[-1] * (most - len(labels))] for labels in label_ids])
    first_BC = first_BC.to(backbone.device)
    questions = [with_answer(each, list(labels[0])) for each, labels in zip(examples, label_ids, strict=True)]
    batch = backbone.collate(questions).to(backbone.device)
    log_probs_BV = label_logits(backbone, prompt, batch, path).log_softmax(dim=1)
    log_probs_BC = require_numbers(backbone, log_probs_BV.gather(1, first_BC.clamp(min=0)))
    return log_probs_BC.masked_fill(first_BC < 0, -torch.inf)


def whole_label_log_probs(
    backbone: Backbone,
    prompt: Prompt,
    examples: Sequence[Example],
    label_ids: Sequence[Sequence[Sequence[int]]],
    path: str = "auto",
) -> Tensor:
    """The reference for `label_log_probs`: reads every row once per label, with the label's text after it."""
    columns = []
    for c in range(max(map(len, label_ids))):  # one label at a time: memory does not grow with their number
        answers = [list(labels[min(c, len(labels) - 1)]) for labels in label_ids]
        pairs = zip(examples, answers, strict=True)
        batch = backbone.collate([with_answer(example, answer) for example, answer in pairs])
        log_probs_B, _ = answer_log_probs(backbone, prompt, batch, path)
        has_label_B = torch.tensor([c < len(labels) for labels in label_ids], device=log_probs_B.device)
        columns.append(log_probs_B.masked_fill(~has_label_B, -torch.inf))
    return torch.stack(columns, dim=1)
