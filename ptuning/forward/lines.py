"""The rows of a batch, or what is left of them after a kept prefix, as lines: tensors of few shapes.

They are laid out on the CPU from the rows' ids, and moved to the model's device at once. Knows nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional

from ptuning.data import IGNORED, Example, added, moved
from ptuning.forward.packing import Sizes

_EMPTY, _PREFIX = -1, -2  # marks in `row_LW`


@dataclass(frozen=True)
class LineShape:
    """All sizes of lines; lines of one shape make a model compute the same kernels."""

    num_lines: int
    """L."""
    width: int
    """W, the places of a line."""
    num_scored: int
    """K, the scored places of a line."""
    num_prefix: int = 0
    """The tokens at the start of the first line that all lines see: a prefix that is run with the rows."""
    is_plain: bool = False
    """Whether each line is one whole row from its first token on, so that causal attention needs no mask."""


@dataclass(frozen=True)
class Place:
    """Where a row stands."""

    line: int
    """Its line."""
    start: int
    """The place of its first token in the line."""
    num_skipped: int
    """The number of leading tokens that are left out."""
    length: int
    """The number of tokens in the line."""


@dataclass(frozen=True, eq=False)
class Lines:
    """L lines of W places, each empty or with a token of some row."""

    shape: LineShape
    numbers: Tensor
    """All tensors below, end to end."""
    places: tuple[Place, ...]
    """Where each row stands."""
    scored: tuple[tuple[int, int], ...]
    """The line and the place of each scored token, in row order."""

    @classmethod
    def of(
        cls,
        rows: Sequence[Example],
        num_skipped: Sequence[int],
        lines: Sequence[Sequence[int]],
        prefix_ids: Sequence[int] = (),
        is_plain: bool = False,
        sizes: Sizes = Sizes(),  # noqa: B008 - a constant
        least_width: int = 1,
        most_width: int | None = None,
    ) -> "Lines":
        """Lays rows out, without the tokens that no scored position needs.

        Args:
            rows: The rows, with answers.
            num_skipped: The number of leading tokens of each row to leave out, because they are run separately.
            lines: The rows of each line, by index.
            prefix_ids: The prefix of all rows, to be run in the same pass, at the start of the first line.
            is_plain: Whether each line is one whole row.
            sizes: How sizes are chosen.
            least_width: Lines are not narrower than this.
            most_width: Lines are not rounded up beyond this; None: no limit.
        """
        places = _places(rows, num_skipped, lines, len(prefix_ids))
        scored = _scored(rows, places)
        counts = [0] * len(lines)
        for line, _ in scored:
            counts[line] += 1
        ends = [least_width, len(prefix_ids), *(each.start + each.length for each in places)]
        shape = LineShape(
            num_lines=sizes.num_lines(len(lines)),
            width=min(sizes.width(max(ends)), max(most_width or sizes.width(max(ends)), *ends)),
            num_scored=sizes.num_scored(max(1, *counts)),
            num_prefix=len(prefix_ids),
            is_plain=is_plain,
        )
        return cls(shape, _numbers(shape, rows, places, scored, prefix_ids), places, scored)

    @property
    def size(self) -> tuple[int, int]:
        """L and W."""
        return self.shape.num_lines, self.shape.width

    def to(self, device: torch.device) -> "Lines":
        """The same lines on another device."""
        return self.with_numbers(moved(self.numbers, device))

    def with_numbers(self, numbers: Tensor) -> "Lines":
        """Lines of the same shape with other numbers."""
        return Lines(self.shape, numbers, self.places, self.scored)

    @cached_property
    def _parts(self) -> tuple[Tensor, ...]:
        shape = self.shape
        in_lines, in_scored = shape.num_lines * shape.width, shape.num_lines * shape.num_scored
        parts = self.numbers.split([in_lines] * 3 + [in_scored] * 2)
        return tuple(each.view(shape.num_lines, -1) for each in parts)

    @property
    def ids_LW(self) -> Tensor:
        """Token ids; 0 in empty places."""
        return self._parts[0]

    @property
    def row_LW(self) -> Tensor:
        """The row of each token; below 0 in empty places and for the prefix."""
        return self._parts[1]

    @property
    def positions_LW(self) -> Tensor:
        """Each token's position in its row."""
        return self._parts[2]

    @property
    def scored_LK(self) -> Tensor:
        """The places whose logits are needed; 0 where a line has fewer."""
        return self._parts[3]

    @property
    def targets_LK(self) -> Tensor:
        """The ids to be predicted there; -100 where a line has fewer."""
        return self._parts[4]

    @property
    def scored_N(self) -> Tensor:
        """The scored places counted through all lines, in row order."""
        return self._index([line * self.shape.width + place for line, place in self.scored])

    @property
    def targets_N(self) -> Tensor:
        """The ids to be predicted at the scored places, in row order."""
        return self.targets_LK.flatten()[self.order_N]

    @property
    def order_N(self) -> Tensor:
        """Where each scored position stands in `scored_LK` counted through all lines, in row order."""
        used = [0] * self.shape.num_lines
        order = []
        for line, _ in self.scored:
            order.append(line * self.shape.num_scored + used[line])
            used[line] += 1
        return self._index(order)

    @property
    def first(self) -> list[int]:
        """The first row of each line; 0 for lines without a row."""
        found = [0] * self.shape.num_lines
        for b, place in reversed(list(enumerate(self.places))):
            found[place.line] = b
        return found

    def tokens(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of each token in row order: its row, its position in the row, its line and its place there."""
        found = [
            (b, each.num_skipped + i, each.line, each.start + i)
            for b, each in enumerate(self.places)
            for i in range(each.length)
        ]
        row_N, position_N, line_N, place_N = self._index(found).unbind(dim=1)
        return row_N, position_N, line_N, place_N

    def _index(self, values: Sequence[object]) -> Tensor:
        return moved(torch.tensor(values, dtype=torch.long), self.numbers.device)

    def mask(self, prefix_mask_LS: Tensor) -> Tensor:
        """Mask `[L, S + W]` over a prefix and then the line, 1 where there is a token; for one row per line."""
        return torch.cat([prefix_mask_LS, (self.row_LW >= 0).long()], dim=1)

    def blocks(self, prefix_mask_LS: Tensor, dtype: torch.dtype) -> Tensor:
        """Additive attention mask `[L, 1, W, S + W]`: 0 where a token sees another, else the dtype's lowest number.

        Each token sees the prefix, itself and the earlier tokens of its row.
        """
        sees_prefix_LWS = rearrange(prefix_mask_LS > 0, "l s -> l 1 s").expand(-1, self.shape.width, -1)
        return self._blocks(sees_prefix_LWS, dtype)

    def blocks_with_joint_prefix(self, num_empty: int, dtype: torch.dtype) -> Tensor:
        """Like `blocks`, for a prefix at the start of the first line.

        Every line sees `num_empty` empty keys, the prefix's keys, and then its own.
        """
        sees_prefix_LWS = repeat(self.row_LW != _PREFIX, "l w -> l w s", s=self.shape.num_prefix)
        return self._blocks(functional.pad(sees_prefix_LWS, (num_empty, 0)), dtype)

    def _blocks(self, sees_prefix_LWS: Tensor, dtype: torch.dtype) -> Tensor:
        is_own_LWW = rearrange(self.row_LW, "l w -> l w 1") == rearrange(self.row_LW, "l w -> l 1 w")
        sees_LWW = is_own_LWW & torch.ones_like(is_own_LWW[0]).tril()
        sees_L1WK = rearrange(torch.cat([sees_prefix_LWS, sees_LWW], dim=2), "l w k -> l 1 w k")
        return added(sees_L1WK, dtype)


def _places(
    rows: Sequence[Example], num_skipped: Sequence[int], lines: Sequence[Sequence[int]], num_prefix: int
) -> tuple[Place, ...]:
    found: dict[int, Place] = {}
    for i, line in enumerate(lines):
        start = num_prefix if i == 0 else 0
        for b in line:
            found[b] = Place(i, start, num_skipped[b], max(0, num_needed(rows[b]) - num_skipped[b]))
            start += found[b].length
    return tuple(found[b] for b in range(len(rows)))


def num_needed(row: Example) -> int:
    """The number of leading tokens of a row up to the last one whose logits are needed."""
    return len(row) - 1 if row.answer_ids else 0


def _scored(rows: Sequence[Example], places: Sequence[Place]) -> tuple[tuple[int, int], ...]:
    return tuple(
        (each.line, each.start + position - each.num_skipped)
        for row, each in zip(rows, places, strict=True)
        for position in range(max(len(row.ids) - 1, each.num_skipped), len(row) - 1)
    )


def _numbers(
    shape: LineShape,
    rows: Sequence[Example],
    places: Sequence[Place],
    scored: Sequence[tuple[int, int]],
    prefix_ids: Sequence[int],
) -> Tensor:
    """The tensors of `Lines`, end to end."""
    in_lines = np.zeros((3, shape.num_lines, shape.width), dtype=np.int64)
    ids_LW, row_LW, positions_LW = in_lines
    row_LW[:] = _EMPTY
    for b, (row, place) in enumerate(zip(rows, places, strict=True)):
        own, end = slice(place.start, place.start + place.length), place.num_skipped + place.length
        ids_LW[place.line, own] = [*row.ids, *row.answer_ids][place.num_skipped : end]
        row_LW[place.line, own] = b
        positions_LW[place.line, own] = np.arange(place.num_skipped, end)
    leading = slice(0, len(prefix_ids))
    ids_LW[0, leading], row_LW[0, leading], positions_LW[0, leading] = prefix_ids, _PREFIX, np.arange(len(prefix_ids))
    scored_LK = np.zeros((shape.num_lines, shape.num_scored), dtype=np.int64)
    targets_LK, used = np.full_like(scored_LK, IGNORED), [0] * shape.num_lines
    targets = [i for row, each in zip(rows, places, strict=True) for i in _predicted(row, each)]
    for (line, place_), target in zip(scored, targets, strict=True):
        scored_LK[line, used[line]], targets_LK[line, used[line]] = place_, target
        used[line] += 1
    return torch.from_numpy(np.concatenate([in_lines.ravel(), scored_LK.ravel(), targets_LK.ravel()]))


def _predicted(row: Example, place: Place) -> list[int]:
    """The answer's ids that the row's tokens in its line predict."""
    return row.answer_ids[max(0, place.num_skipped - len(row.ids) + 1) :]
