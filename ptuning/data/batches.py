"""Batches of examples, and their padded tensors.

Knows nothing of files, models or training.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from ptuning.data.examples import Example, prefix_ids

IGNORED = -100  # marks a position without a label, as in torch's losses


@dataclass(frozen=True)
class Batch:
    """Rows of a causal model, question and answer in one sequence; tensors are made when they are first asked for.

    T, the length of the longest row, includes the slots' negative ids.
    """

    examples: Sequence[Example]
    """The rows; an example without an answer has no scored position."""
    pad_id: int
    """The id that fills up shorter rows; it is masked."""
    padding_side: str = "right"
    """left or right; no score depends on it."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a constant
    """Where the tensors are made."""
    given_prefix: Sequence[int] | None = None
    """The ids that all rows are known to begin with; None: as many as these rows share."""

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def num_columns(self) -> int:
        """T."""
        return max(map(len, self.examples))

    @property
    def ids_BT(self) -> Tensor:
        """Token ids `[B, T]`; virtual token i is -(i + 1)."""
        return self._tensors[0]

    @property
    def mask_BT(self) -> Tensor:
        """1 where a row has a token, 0 where it is padded, `[B, T]`."""
        return self._tensors[1]

    @property
    def labels_BT(self) -> Tensor:
        """The answers' ids at their places in the row, -100 elsewhere, `[B, T]`."""
        return self._tensors[2]

    @property
    def num_unscored(self) -> list[int]:
        """The number of tokens in each row before the first position whose logits are needed."""
        return [len(each.ids) - 1 for each in self.examples]

    @cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """The ids that all rows begin with, before every scored position; empty for a single row of unknown prefix."""
        return prefix_ids(self.examples) if self.given_prefix is None else tuple(self.given_prefix)

    @property
    def num_prefix_tokens(self) -> int:
        """The number of tokens that all rows begin with."""
        return len(self.prefix_ids)

    @property
    def scored_BT(self) -> Tensor:
        """True at the N positions whose logits are needed: each predicts the label at the position after it."""
        return torch.nn.functional.pad(self.labels_BT[:, 1:] != IGNORED, (0, 1))

    @property
    def targets(self) -> list[int]:
        """The labels to be predicted at the scored positions, in row order."""
        return [i for each in self.examples for i in each.answer_ids]

    @property
    def targets_N(self) -> Tensor:
        """`targets` as a tensor."""
        return moved(torch.tensor(self.targets, dtype=torch.long), self.device)

    @property
    def text_BT(self) -> Tensor:
        """True at the real tokens of a row's question: no virtual token, no answer, no padding; `[B, T]`."""
        return (self.mask_BT > 0) & (self.ids_BT >= 0) & (self.labels_BT == IGNORED)

    def beginning_with(self, prefix: Sequence[int] | None) -> Self:
        """The same batch, whose rows are known to begin with a prefix; None: with as many ids as they share."""
        return dataclasses.replace(self, given_prefix=prefix)

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        return dataclasses.replace(self, device=device)

    @cached_property
    def _tensors(self) -> list[Tensor]:
        """Ids, mask and labels, on the device."""
        ids_BT, mask_BT = padded(
            [[*each.ids, *each.answer_ids] for each in self.examples], self.pad_id, self.padding_side
        )
        labels = [[*[IGNORED] * len(each.ids), *each.answer_ids] for each in self.examples]
        labels_BT, _ = padded(labels, IGNORED, self.padding_side)
        return [moved(each, self.device) for each in (ids_BT, mask_BT, labels_BT)]


class PairBatch(Batch):
    """Rows of an encoder-decoder: questions for the encoder, answers (`labels_BT`) for the decoder."""

    @property
    def num_columns(self) -> int:
        """T, the length of the longest question."""
        return max(len(each.ids) for each in self.examples)

    @property
    def scored_BT(self) -> Tensor:
        """True at the answers' positions in the decoder, `[B, A]`: each predicts the label at its own position."""
        return self.labels_BT != IGNORED

    @property
    def text_BT(self) -> Tensor:
        """True at the real tokens of a row's question, `[B, T]`."""
        return (self.mask_BT > 0) & (self.ids_BT >= 0)

    @cached_property
    def _tensors(self) -> list[Tensor]:
        """Questions, their mask, and answers."""
        ids_BT, mask_BT = padded([each.ids for each in self.examples], self.pad_id, self.padding_side)
        labels_BA, _ = padded([each.answer_ids for each in self.examples], IGNORED, "right")
        return [moved(each, self.device) for each in (ids_BT, mask_BT, labels_BA)]


@dataclass(frozen=True)
class ApartBatch(Batch):
    """Rows whose prefixes and rests stand in columns of their own, each padded on the left; answers are left out."""

    prefix_lengths: Sequence[int] = ()
    """The number of leading tokens of each row that are its prefix."""

    @property
    def num_columns(self) -> int:
        """T, the longest prefix and the longest rest."""
        rests = (len(each.ids) - length for each, length in zip(self.examples, self.prefix_lengths, strict=True))
        return max(self.prefix_lengths) + max(rests)

    @cached_property
    def _tensors(self) -> list[Tensor]:
        """Ids and mask; no answers."""
        rows = zip(self.examples, self.prefix_lengths, strict=True)
        parts = zip(*((each.ids[:length], each.ids[length:]) for each, length in rows), strict=True)
        halves = zip(*(padded(part, self.pad_id, "left") for part in parts), strict=True)
        ids_BT, mask_BT = (moved(torch.cat(each, dim=1), self.device) for each in halves)
        return [ids_BT, mask_BT, torch.full_like(ids_BT, IGNORED)]


def collate(examples: Sequence[Example], pad_id: int, padding_side: str = "right") -> Batch:
    """A batch for a causal model; arguments as the fields of `Batch`."""
    return Batch(tuple(examples), pad_id, padding_side)


def collate_pairs(examples: Sequence[Example], pad_id: int, padding_side: str = "right") -> PairBatch:
    """A batch for an encoder-decoder, questions and answers apart; arguments as the fields of `Batch`."""
    return PairBatch(tuple(examples), pad_id, padding_side)


def padded(rows: Sequence[Sequence[int]], fill: int, padding_side: str) -> tuple[Tensor, Tensor]:
    """Rows of ids, filled up on the left or right, `[B, T]`; and a mask, 1 at a row's own ids."""
    length = max(map(len, rows))
    filled_BT = torch.full((len(rows), length), fill)
    mask_BT = torch.zeros_like(filled_BT)
    for i, row in enumerate(rows):
        start = length - len(row) if padding_side == "left" else 0
        filled_BT[i, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
        mask_BT[i, start : start + len(row)] = 1
    return filled_BT, mask_BT


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on another device; a copy to a GPU does not wait for it."""
    tensor = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return tensor.to(device, non_blocking=True)


def added(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to attention scores: 0 where a key is seen, the lowest number elsewhere."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)


def positions(mask_BT: Tensor) -> Tensor:
    """The position of each token in its row, counted from 0 without padding: `[B, T]`."""
    return (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
