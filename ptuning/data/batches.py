"""Rows -> token ids -> padded batches of similar length.

Knows nothing of files, models or training.
"""

import dataclasses
import logging
import math
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from ptuning.data.readers import Row, require_columns
from ptuning.data.template import Task, Template, TemplateEncoder, Verbalizer, text_ids
from ptuning.errors import DataError

_log = logging.getLogger(__name__)

# Beginnings of texts, different enough that what stands before them all is joined by none.
_PROBES = ("", "a", "The", " a", "1", "é", "(", '"', "\n", "-")
IGNORED = -100  # a label that is not a label, as everywhere in the field
FEWEST_BATCHES = 10**9  # a batch's cost that no padding outweighs
_BATCHES_PER_WINDOW = 50  # rows are shuffled, then grouped by length within windows of this many batches


@dataclass(frozen=True)
class Example:
    """A row as token ids; negative ids are virtual tokens."""

    ids: list[int]
    """Everything before the answer."""
    answer_ids: list[int]
    """The answer's tokens; empty where the row has no answer."""
    label: int | None = None
    """The index of the row's label in the verbalizer, where there is one."""
    was_cut: bool = False
    """Whether the text field was shortened to fit."""

    def __len__(self) -> int:
        return len(self.ids) + len(self.answer_ids)

    @property
    def num_text(self) -> int:
        """How many of its tokens are real ones."""
        return sum(i >= 0 for i in self.ids) + len(self.answer_ids)


@dataclass(frozen=True)
class Batch:
    """Padded rows of a causal model, question and answer in one sequence. T counts the slots' negative ids too."""

    ids_BT: Tensor
    """Token ids `[B, T]`; virtual token i is -(i + 1)."""
    mask_BT: Tensor
    """1 where a row has a token, 0 where it is padded, `[B, T]`."""
    labels_BT: Tensor
    """The answers' ids where they stand in the row, elsewhere -100, `[B, T]`."""
    num_unscored: tuple[int, ...]
    """How many tokens each row has before the first position whose logits are needed."""
    shared_ids: tuple[int, ...]
    """What all rows begin with, before every such position; nothing where there is one row only."""

    @property
    def num_shared(self) -> int:
        """How many tokens all rows begin with."""
        return len(self.shared_ids)

    @property
    def scored_BT(self) -> Tensor:
        """True at the N positions whose logits are needed: each predicts the label at the position after it."""
        return torch.nn.functional.pad(self.labels_BT[:, 1:] != IGNORED, (0, 1))

    @property
    def targets_N(self) -> Tensor:
        """The labels to be predicted at the scored positions, in row order."""
        labels_BT = self.labels_BT[:, 1:]
        return labels_BT[labels_BT != IGNORED]

    @property
    def text_BT(self) -> Tensor:
        """True where a row has a real token of its question: no virtual token, no answer, no padding; `[B, T]`."""
        return (self.mask_BT > 0) & (self.ids_BT >= 0) & (self.labels_BT == IGNORED)

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        tensors = ("ids_BT", "mask_BT", "labels_BT")
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in tensors})


class PairBatch(Batch):
    """Padded rows of an encoder-decoder: the question is the encoder's, the answer (`labels_BT`) the decoder's."""

    @property
    def scored_BT(self) -> Tensor:
        """True at the decoder's positions of the answer, `[B, A]`: each predicts the label at its own position."""
        return self.labels_BT != IGNORED

    @property
    def targets_N(self) -> Tensor:
        """The answers' ids, in row order."""
        return self.labels_BT[self.scored_BT]

    @property
    def text_BT(self) -> Tensor:
        """True where a row has a real token of its question, `[B, T]`."""
        return (self.mask_BT > 0) & (self.ids_BT >= 0)


class Coder:
    """Turns rows of a task into examples with one tokenizer.

    Args:
        task: The template, the answer and the verbalizer.
        tokenizer: The base model's tokenizer.
        max_positions: Positions the model has; None for no limit.
        closes: Whether the question is an encoder's: the tokenizer's end-of-text token closes it, and the answer,
            a decoder's, has positions of its own.
    """

    def __init__(self, task: Task, tokenizer: Any, max_positions: int | None = None, closes: bool = False) -> None:
        self.task = task
        self._tokenizer = tokenizer
        self._encoder = TemplateEncoder(Template.parse(task.template), tokenizer, task.chat_template, closes)
        self._answer = Template.parse(task.answer)
        self.labels = tuple(task.verbalizer or ())
        self.label_ids = Verbalizer(task.verbalizer).token_ids(tokenizer) if task.verbalizer else []
        self._max_positions = sys.maxsize if max_positions is None else max_positions
        self._has_apart = closes

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """Encodes rows with their answers.

        Raises:
            DataError: Naming the row, for a missing column, a label the verbalizer does not know or a row that cannot
                fit the model's positions.
        """
        answers = [self._answer_ids(row) for row in rows]
        reserved = [self.longest_label or len(answer) for answer in answers]  # a label must not decide what is cut
        for row, num_tokens in zip(rows, reserved, strict=True):
            if num_tokens > self._max_positions:
                raise DataError(
                    f"{row.where}: an answer of {num_tokens} tokens", f"at most {self._max_positions}", "Shorten it"
                )
        examples = self._questions(rows, [self._room_beside(num_tokens) for num_tokens in reserved])
        labels = [self.labels.index(row.values[self.task.label_column]) if self.labels else None for row in rows]
        return [
            Example(example.ids, answer, label, example.was_cut)
            for example, answer, label in zip(examples, answers, labels, strict=True)
        ]

    def encode_questions(self, rows: Sequence[Row]) -> list[Example]:
        """Encodes rows that have no answers, with room for the longest label; raises like `encode`."""
        return self._questions(rows, [self._room_beside(self.longest_label)] * len(rows))

    def encode_prompts(self, rows: Sequence[Row], max_new_tokens: int) -> list[Example]:
        """Encodes rows to be continued; only the model's positions limit what may be written. Raises like `encode`."""
        room = min(self.task.max_length or sys.maxsize, self._positions_beside(max_new_tokens))
        return self._questions(rows, [room] * len(rows))

    def _room_beside(self, num_answer_tokens: int) -> int:
        """Tokens that a question may have beside an answer."""
        length = self.task.max_length or sys.maxsize
        return min(length - num_answer_tokens, self._positions_beside(num_answer_tokens))

    def _positions_beside(self, num_answer_tokens: int) -> int:
        return self._max_positions - (0 if self._has_apart else num_answer_tokens)

    @cached_property
    def common_ids(self) -> tuple[int, ...]:
        """What every row begins with, virtual tokens and words, and which is never all of a row."""
        rows = [Row(dict.fromkeys(self.columns, text), "a row") for text in _PROBES]
        ids = [each.ids for each in self._questions(rows, [sys.maxsize] * len(rows))]
        return tuple(_common_beginning(ids)[: min(map(len, ids)) - 1])

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template needs."""
        return self._encoder.template.field_names

    def plain(self, text: str) -> str:
        """Text in which no word of a special token is left."""
        return self._encoder.plain(text)

    @property
    def longest_label(self) -> int:
        """Tokens of the longest label's text; 0 without a verbalizer."""
        return max(map(len, self.label_ids), default=0)

    def _questions(self, rows: Sequence[Row], rooms: Sequence[int]) -> list[Example]:
        for row in rows:
            require_columns(row, self.columns)
        encoded = self._encoder.encode([row.values for row in rows], rooms, lambda i: rows[i].where)
        return [Example(each.ids, [], None, each.was_cut) for each in encoded]

    def _answer_ids(self, row: Row) -> list[int]:
        require_columns(row, self._answer.field_names)
        if self.labels:
            label = row.values[self.task.label_column]
            if label not in self.labels:
                raise DataError(
                    f"{row.where}: label {label!r}",
                    f"one of {', '.join(self.labels)}",
                    "Correct it, or add it to data.verbalizer",
                )
            return self.label_ids[self.labels.index(label)]
        text = "".join(
            str(stretch)
            for stretch in self._answer.fill({name: self.plain(row.values[name]) for name in self._answer.field_names})
        )
        ids = text_ids(self._tokenizer, [text])[0]
        end = self._tokenizer.eos_token_id
        return ids if end is None else [*ids, end]


def collate(examples: Sequence[Example], pad_id: int, padding_side: str = "right") -> Batch:
    """Pads examples to a causal model's batch.

    Args:
        examples: The rows; an example without an answer has no scored position.
        pad_id: What fills the rows; it is masked.
        padding_side: left or right; no row's score depends on it.
    """
    ids_BT, mask_BT = padded([[*each.ids, *each.answer_ids] for each in examples], pad_id, padding_side)
    labels = [[*[IGNORED] * len(each.ids), *each.answer_ids] for each in examples]
    labels_BT, _ = padded(labels, IGNORED, padding_side)
    return Batch(ids_BT, mask_BT, labels_BT, *_beginnings(examples))


def collate_pairs(examples: Sequence[Example], pad_id: int, padding_side: str = "right") -> PairBatch:
    """Pads examples to an encoder-decoder's batch: questions and answers apart. Arguments as in `collate`."""
    ids_BT, mask_BT = padded([each.ids for each in examples], pad_id, padding_side)
    labels_BA, _ = padded([each.answer_ids for each in examples], IGNORED, "right")
    return PairBatch(ids_BT, mask_BT, labels_BA, *_beginnings(examples))


def _beginnings(examples: Sequence[Example]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`num_unscored` and `shared_ids` of a batch."""
    return tuple(len(each.ids) - 1 for each in examples), shared_ids(examples)


def shared_ids(examples: Sequence[Example]) -> tuple[int, ...]:
    """What all rows begin with, before every position whose logits are needed; nothing where there is one row only."""
    if len(examples) < 2:
        return ()
    return tuple(_common_beginning([each.ids for each in examples]))[: min(len(each.ids) - 1 for each in examples)]


def _common_beginning(rows: Sequence[list[int]]) -> list[int]:
    """What all rows begin with."""
    first, last = min(rows), max(rows)  # in the order of a dictionary, so that those between share what these share
    return first[: next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))]


def padded(rows: Sequence[Sequence[int]], fill: int, padding_side: str) -> tuple[Tensor, Tensor]:
    """Rows of ids as `[B, T]`, filled up on a side, left or right; and 1 where a row has an element of its own."""
    length = max(map(len, rows))
    filled_BT = torch.full((len(rows), length), fill)
    mask_BT = torch.zeros_like(filled_BT)
    for i, row in enumerate(rows):
        start = length - len(row) if padding_side == "left" else 0
        filled_BT[i, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
        mask_BT[i, start : start + len(row)] = 1
    return filled_BT, mask_BT


def added(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to attention's scores: 0 where there is something to see, else the least number."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)


def positions(mask_BT: Tensor) -> Tensor:
    """Position of each token in its row, counted from 0 whatever the padding: `[B, T]`."""
    return (mask_BT.cumsum(dim=1) - 1).clamp(min=0)


def require_small(
    examples: Sequence[Example], limit: int | None, num_new_tokens: int = 0, names: Sequence[str] | None = None
) -> None:
    """Raises `DataError` for a row that alone has more tokens than a batch may have.

    Args:
        examples: The rows.
        limit: The most tokens a batch may have; None: no limit.
        num_new_tokens: What each row may grow by.
        names: What the rows are called; None: as they are counted.
    """
    longest = max(range(len(examples)), key=lambda i: len(examples[i]), default=None)
    if longest is None or limit is None or len(examples[longest]) + num_new_tokens <= limit:
        return
    length = len(examples[longest]) + num_new_tokens
    raise DataError(
        f"{names[longest] if names else f'row {longest}'} of {length} tokens, virtual and new ones included",
        f"at most {limit}, the tokens that a batch may have",
        "Raise max_batch_tokens, or shorten the row",
    )


class BatchStream:
    """Endless batches of row numbers; `stream[i]` depends on the seed and i alone, so that any step can resume.

    Rows of similar length stand together, to waste little on padding; rows and batches are shuffled anew each epoch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self.num_batches_per_epoch = -(-len(lengths) // batch_size)
        self._epoch, self._batches = -1, list[list[int]]()

    def __getitem__(self, index: int) -> list[int]:
        epoch, place = divmod(index, self.num_batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[place]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        chance = random.Random(f"{self._seed}-{epoch}")
        order = list(range(len(self._lengths)))
        chance.shuffle(order)
        window = self._batch_size * _BATCHES_PER_WINDOW
        grouped = [
            row
            for start in range(0, len(order), window)
            for row in sorted(order[start : start + window], key=self._lengths.__getitem__)
        ]
        batches = [grouped[start : start + self._batch_size] for start in range(0, len(grouped), self._batch_size)]
        chance.shuffle(batches)
        return batches


def by_length(
    examples: Sequence[Example],
    batch_size: int,
    max_batch_tokens: int | None = None,
    num_new_tokens: int = 0,
    overhead_tokens: int = FEWEST_BATCHES,
    num_run: Sequence[int] | None = None,
) -> list[list[int]]:
    """Row numbers in batches of similar length, the longest first: the cheapest way to part the sorted rows.

    Args:
        examples: The rows.
        batch_size: The most rows a batch may have.
        max_batch_tokens: The most tokens it may have, padding included; None: no limit.
        num_new_tokens: What each row may grow by.
        overhead_tokens: What a batch costs besides its tokens, in tokens; by default so much that there are as few
            batches as can be.
        num_run: How many leading tokens of each row have been run already.

    Raises:
        DataError: For a row that alone has too many tokens.
    """
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i]))
    shapes = [(num_run[i] if num_run else 0, len(examples[i]) + num_new_tokens) for i in order]
    limit = math.inf if max_batch_tokens is None else max_batch_tokens
    require_small(examples, max_batch_tokens, num_new_tokens)
    costs, ends = [0] * (len(order) + 1), [0] * len(order)  # of the rows from each place on; where its batch ends
    for start in reversed(range(len(order))):
        leading = rest = 0  # the longest in the batch: what has been run and the rest are padded apart
        choices: list[tuple[int, int]] = []
        for num_rows, (own_leading, length) in enumerate(shapes[start : start + batch_size], 1):
            leading, rest = max(leading, own_leading), max(rest, length - own_leading)
            if choices and (leading + rest) * num_rows > limit:
                break
            choices.append((costs[start + num_rows] + rest * num_rows + overhead_tokens, start + num_rows))
        costs[start], ends[start] = min(choices)
    batches, start = [], 0
    while start < len(order):
        batches.append(order[start : ends[start]])
        start = ends[start]
    return batches


def num_cut(examples: Iterable[Example]) -> int:
    """How many rows lost the end of their text."""
    return sum(example.was_cut for example in examples)


def warn_of_cut(what: str, examples: Sequence[Example]) -> None:
    """Logs how many rows lost the end of their text, where any did."""
    count = num_cut(examples)
    if count:
        _log.warning(
            f"{what}: {count:,} of {len(examples):,} rows lost the end of their text, being too long for "
            "the model's positions or max_length"
        )


def with_answer(example: Example, answer_ids: list[int]) -> Example:
    """The example with another answer."""
    return dataclasses.replace(example, answer_ids=answer_ids)
