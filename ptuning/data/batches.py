"""Pads examples into batches of tensors.

Knows nothing of files, models or training.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ptuning.data.examples import Example, prefix_ids

IGNORED = -100  # marks a position without a label, as in torch's losses


@dataclass(frozen=True)
class Batch:
    """Padded rows of a causal model, question and answer in one sequence. T includes the slots' negative ids."""

    ids_BT: Tensor
    """Token ids `[B, T]`; virtual token i is -(i + 1)."""
    mask_BT: Tensor
    """1 where a row has a token, 0 where it is padded, `[B, T]`."""
    labels_BT: Tensor
    """The answers' ids at their places in the row, -100 elsewhere, `[B, T]`."""
    num_unscored: tuple[int, ...]
    """The number of tokens in each row before the first position whose logits are needed."""
    prefix_ids: tuple[int, ...]
    """The ids that all rows begin with, before every such position; empty for a single row."""

    @property
    def num_prefix_tokens(self) -> int:
        """The number of tokens that all rows begin with."""
        return len(self.prefix_ids)

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
        """True at the real tokens of a row's question: no virtual token, no answer, no padding; `[B, T]`."""
        return (self.mask_BT > 0) & (self.ids_BT >= 0) & (self.labels_BT == IGNORED)

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        tensors = ("ids_BT", "mask_BT", "labels_BT")
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in tensors})


class PairBatch(Batch):
    """Padded rows of an encoder-decoder: questions for the encoder, answers (`labels_BT`) for the decoder."""

    @property
    def scored_BT(self) -> Tensor:
        """True at the answers' positions in the decoder, `[B, A]`: each predicts the label at its own position."""
        return self.labels_BT != IGNORED

    @property
    def targets_N(self) -> Tensor:
        """The answers' ids, in row order."""
        return self.labels_BT[self.scored_BT]

    @property
    def text_BT(self) -> Tensor:
        """True at the real tokens of a row's question, `[B, T]`."""
        return (self.mask_BT > 0) & (self.ids_BT >= 0)


def collate(examples: Sequence[Example], pad_id: int, padding_side: str = "right") -> Batch:
    """Pads examples into a batch for a causal model.

    Args:
        examples: The rows; an example without an answer has no scored position.
        pad_id: The id that fills up shorter rows; it is masked.
        padding_side: left or right; no score depends on it.
    """
    ids_BT, mask_BT = padded([[*each.ids, *each.answer_ids] for each in examples], pad_id, padding_side)
    labels = [[*[IGNORED] * len(each.ids), *each.answer_ids] for each in examples]
    labels_BT, _ = padded(labels, IGNORED, padding_side)
    return Batch(ids_BT, mask_BT, labels_BT, _num_unscored(examples), prefix_ids(examples))


def collate_pairs(examples: Sequence[Example], pad_id: int, padding_side: str = "right") -> PairBatch:
    """Pads examples into a batch for an encoder-decoder, questions and answers apart. Arguments as in `collate`."""
    ids_BT, mask_BT = padded([each.ids for each in examples], pad_id, padding_side)
    labels_BA, _ = padded([each.answer_ids for each in examples], IGNORED, "right")
    return PairBatch(ids_BT, mask_BT, labels_BA, _num_unscored(examples), prefix_ids(examples))


def _num_unscored(examples: Sequence[Example]) -> tuple[int, ...]:
    """The number of tokens in each row before the first position whose logits are needed."""
    return tuple(len(each.ids) - 1 for each in examples)


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


def added(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to attention scores: 0 where a key is seen, the lowest number elsewhere."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)


def positions(mask_BT: Tensor) -> Tensor:
    """The position of each token in its row, counted from 0 without padding: `[B, T]`."""
    return (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
