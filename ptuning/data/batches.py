"""Rows -> token ids -> padded batches of similar length.

Knows nothing of files, models or training.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ptuning.data.examples import Example, prefix_ids

IGNORED = -100  # a label that is not a label, as everywhere in the field


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
    prefix_ids: tuple[int, ...]
    """What all rows begin with, before every such position; nothing where there is one row only."""

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens all rows begin with."""
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
    """`num_unscored` and `prefix_ids` of a batch."""
    return tuple(len(each.ids) - 1 for each in examples), prefix_ids(examples)


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
