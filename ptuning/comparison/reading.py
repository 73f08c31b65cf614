"""Reads rows with the frozen base: label scores and answers behind their words, hidden states, their plain text.

It reads a general text too, for its loss. Knows nothing of ways.
"""

import inspect
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ptuning.comparison.protocol import Writing
from ptuning.data import Coder, Example, Row, Task, Template, by_length, positions, prefix_ids, with_answer
from ptuning.errors import DataError, ModelError
from ptuning.evaluation import RowScores, score_rows
from ptuning.forward import Prompt, ReadOptions
from ptuning.inference import write_rows
from ptuning.model import Backbone, CausalBackbone

_PIECE, _MOST_TOKENS = 256, 1 << 13  # of a general text: a piece of it, and all that is read
_MOST_ROWS, _CPU_TOKENS = 32, 1 << 11  # of a batch


def label_scores(backbone: Backbone, task: Task, rows: Sequence[Row], prompt: Prompt | None = None) -> Tensor:
    """Log-probability of each label's text behind each row, `[N, C]`; the rows need no answers.

    Args:
        backbone: The frozen model.
        task: The words, with slots where there is a prompt.
        rows: The rows.
        prompt: The soft prompt; None: none.
    """
    coder = backbone.coder(task)
    examples = [replace(each, label=0) for each in coder.encode_questions(rows)]  # any label: its score is not read
    options = ReadOptions(rows_at_once(backbone, examples))
    scores = score_rows(backbone, _given(backbone, prompt), examples, coder.label_ids, options)
    assert scores.labels_NC is not None
    return scores.labels_NC.float()


def rows_at_once(backbone: Backbone, examples: Sequence[Example]) -> int:
    """Rows of a batch: on a CPU fewer where they are long, since what its caches cannot hold is slower to read.

    What all rows begin with is run once, where the model can keep it, and does not count.
    """
    if backbone.device.type != "cpu":
        return _MOST_ROWS
    num_shared = len(prefix_ids(examples)) if backbone.can_keep_prefix else 0
    longest = max(map(len, examples), default=1) - num_shared
    return min(_MOST_ROWS, max(1, _CPU_TOKENS // max(1, longest)))


def written_answers(
    backbone: Backbone, task: Task, rows: Sequence[Row], writing: Writing, prompt: Prompt | None = None
) -> list[str]:
    """The answer that the base writes behind each row; the rows need no answers. Arguments as in `label_scores`."""
    examples = backbone.coder(task).encode_prompts(rows, writing.max_new_tokens)
    return write_rows(
        backbone, _given(backbone, prompt), examples, writing.max_new_tokens, writing.stop_strings, ReadOptions()
    )


def answer_losses(backbone: Backbone, task: Task, rows: Sequence[Row], prompt: Prompt | None = None) -> Tensor:
    """The loss of each row's expected answer, as `Writer.answer_losses`. Arguments as in `label_scores`."""
    examples = answer_examples(backbone.coder(task), backbone.tokenizer, rows)
    return token_losses(score_rows(backbone, _given(backbone, prompt), examples, [], ReadOptions()), examples)


def answer_examples(coder: Coder, tokenizer: Any, rows: Sequence[Row]) -> list[Example]:
    """The rows with their answers, without the token that ends these; an empty answer keeps it."""
    ended = coder.encode(rows)
    is_closed = tokenizer.eos_token_id is not None
    return [with_answer(each, each.answer_ids[:-1] or each.answer_ids) if is_closed else each for each in ended]


def token_losses(scores: RowScores, examples: Sequence[Example]) -> Tensor:
    """The loss of each row's answer as a mean over its tokens, `[N]`, in nats."""
    return -scores.log_probs_N.float() / torch.tensor([max(1, len(each.answer_ids)) for each in examples])


def _given(backbone: Backbone, prompt: Prompt | None) -> Prompt:
    return torch.zeros(0, backbone.width) if prompt is None else prompt


def num_tokens(backbone: Backbone, task: Task, rows: Sequence[Row]) -> float:
    """The mean number of tokens of a request, virtual ones included."""
    return sum(len(each.ids) for each in backbone.coder(task).encode_questions(rows)) / len(rows)


@torch.no_grad()
def hidden_states(backbone: Backbone, task: Task, rows: Sequence[Row], batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """The base's last hidden states, behind its final norm: that of the last token and the mean, each `[N, H]` fp32.

    Args:
        backbone: The frozen model.
        task: The words, without slots.
        rows: The rows.
        batch_size: Rows read at once.

    Raises:
        ModelError: For a model that is not causal.
    """
    if not isinstance(backbone, CausalBackbone):
        raise ModelError(f"hidden states of {backbone.name}", "a causal model", "Leave this way out")
    examples, base = backbone.coder(task).encode_questions(rows), backbone.model.base_model
    accepted = inspect.signature(base.forward).parameters
    last_NH, mean_NH = (torch.empty(len(rows), backbone.width) for _ in range(2))
    for places in by_length(examples, batch_size, overhead_tokens=backbone.overhead_tokens):
        batch = backbone.collate([examples[i] for i in places]).to(backbone.device)
        inputs = {"attention_mask": batch.mask_BT, "position_ids": positions(batch.mask_BT)}
        with backbone.in_turn():
            states_BTH = base(
                input_ids=batch.ids_BT, **{name: each for name, each in inputs.items() if name in accepted}
            ).last_hidden_state.float()
        mask_BT1 = batch.mask_BT[..., None].to(states_BTH)
        ends_B = batch.mask_BT.sum(dim=1) - 1
        last_NH[places] = states_BTH[torch.arange(len(places)), ends_B].cpu()
        mean_NH[places] = ((states_BTH * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)).cpu()
    return last_NH, mean_NH


def text_ids(backbone: Backbone, text: str) -> list[list[int]]:
    """The paragraphs of a text as tokens, long ones in pieces; of a long text the beginning.

    Raises:
        DataError: For a text without two tokens in a row.
    """
    size = min(_PIECE, backbone.max_positions or _PIECE)
    found, num_tokens = list[list[int]](), 0
    for paragraph in filter(str.strip, text.split("\n\n")):
        ids = backbone.tokenizer(paragraph.strip())["input_ids"]
        pieces = [ids[i : i + size] for i in range(0, len(ids), size)]
        found += [piece for piece in pieces if len(piece) > 1]
        num_tokens += len(ids)
        if num_tokens >= _MOST_TOKENS:
            break
    if not found:
        raise DataError("a general text without words", "some sentences", "Give another compare.general_text")
    return found


@torch.no_grad()
def text_loss(model: Any, ids: Sequence[Sequence[int]]) -> float:
    """The mean cross-entropy of a token that stands behind others of its piece, in nats.

    Args:
        model: A causal language model of transformers.
        ids: The pieces, as `text_ids` gives them.
    """
    device, total = next(model.parameters()).device, 0.0
    for piece in ids:
        ids_1T = torch.tensor([list(piece)], device=device)
        logits_TV = model(input_ids=ids_1T).logits[0, :-1].float()
        total += float(functional.cross_entropy(logits_TV, ids_1T[0, 1:], reduction="sum"))
    return total / sum(len(piece) - 1 for piece in ids)


def plain_text(task: Task, row: Row) -> str:
    """The columns that a row's template shows, one a line."""
    return "\n".join(row.values[name] for name in Template.parse(task.template).field_names)


def in_turn(rows: Sequence[Row], column: str | None, seed: int) -> list[Row]:
    """The rows in a random order in which the labels take turns, so that its beginning holds all labels.

    Args:
        rows: The rows.
        column: The column with the labels; None: there are none, and no turns.
        seed: Seed of the order.
    """
    chance, by_label = random.Random(seed), dict[str, list[Row]]()
    for row in chance.sample(list(rows), len(rows)):
        by_label.setdefault("" if column is None else row.values[column], []).append(row)
    groups = [by_label[label] for label in sorted(by_label)]
    longest = max(map(len, groups), default=0)
    turns = [[group[i] for group in groups if i < len(group)] for i in range(longest)]
    return [row for turn in turns for row in chance.sample(turn, len(turn))]
