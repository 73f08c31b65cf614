"""Packs the rest of a batch's rows into lines: one row per line, or several end to end that do not see each other.

Rows of different lengths, padded to the longest, waste part of every matrix product. Packed end to end, they fill the
lines. Knows nothing of models.
"""

import bisect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional

from ptuning.data import Batch, added

WIDEST = 2  # times the longest row: wider lines leave less space empty, but make attention slower
_TRIES, _ROWS_TRIED = 64, 4096  # widths to try: fewer for many rows, which fill lines of any width
_DOUBLE_COST_WIDTH = 5000  # tokens: attention doubles the cost of a line this wide; estimated for SmolLM2-135M


@dataclass(frozen=True)
class PackedLines:
    """The rest of a batch's rows, packed into L lines of width W."""

    ids_LW: Tensor
    """Token ids; 0 in empty places."""
    row_LW: Tensor
    """The row of each token; -1 in empty places."""
    positions_LW: Tensor
    """Each token's position in its row."""
    scored_LW: Tensor
    """Whether the token's logits are needed."""
    order_N: Tensor
    """For each scored position, in row order, its index among the scored positions of the lines."""
    columns: tuple[Tensor, Tensor]
    """Row and column of each token in the batch, in row order."""
    places: tuple[Tensor, Tensor]
    """Line and place in the line of each token, in row order."""
    first: tuple[int, ...]
    """The first row of each line."""

    @classmethod
    def of(
        cls,
        batch: Batch,
        prefix_lengths: Sequence[int],
        groups: Sequence[Hashable] | None = None,
        prefix_ids: Sequence[int] = (),
    ) -> Self:
        """Packs a batch, without the tokens that no scored position needs.

        Args:
            batch: The rows.
            prefix_lengths: The number of leading tokens of each row to leave out, because they are run separately.
            groups: The group of each row; only rows of one group share a line. None: one row per line.
            prefix_ids: The prefix of all rows, to be run in the same pass, at the start of the first line.
        """
        device = batch.ids_BT.device
        prefix_lengths_B1 = torch.tensor(prefix_lengths, device=device)[:, None]
        is_needed_BT = batch.scored_BT.flip(1).cumsum(dim=1).flip(1) > 0  # up to the last scored position
        position_BT = batch.mask_BT.cumsum(dim=1) - 1
        is_rest_BT = (batch.mask_BT > 0) & (position_BT >= prefix_lengths_B1) & is_needed_BT
        lengths = is_rest_BT.sum(dim=1).tolist()
        num_rows = len(lengths)
        prefix_row = num_rows  # the prefix is packed as one more row
        if prefix_ids:
            lengths, groups = [*lengths, len(prefix_ids)], [0] * (num_rows + 1)
        lines = [[b] for b in range(num_rows)] if groups is None else pack(lengths, groups)
        lines = [sorted(line, key=lambda b: b != prefix_row) for line in lines]
        lines = sorted(lines, key=lambda line: line[0] != prefix_row)
        width = max(sum(lengths[b] for b in line) for line in lines)
        starts = {b: (i, sum(lengths[b] for b in line[:k])) for i, line in enumerate(lines) for k, b in enumerate(line)}
        line_B, start_B = torch.tensor([starts[b] for b in range(num_rows)], device=device).unbind(dim=1)
        row_N, column_N = is_rest_BT.nonzero(as_tuple=True)
        places = line_B[row_N], (start_B[:, None] + position_BT - prefix_lengths_B1)[is_rest_BT]

        def spread(values: Tensor, empty: int = 0) -> Tensor:
            lines_LW = torch.full((len(lines), width), empty, dtype=values.dtype, device=device)
            return lines_LW.index_put_(places, values)

        scored_LW = spread(batch.scored_BT[is_rest_BT])
        order_N = spread(torch.arange(len(row_N), device=device))[scored_LW].argsort()
        position_LW = spread(position_BT[is_rest_BT])
        ids_LW, row_LW = spread(batch.ids_BT[is_rest_BT]), spread(row_N, -1)
        if prefix_ids:
            prefix = slice(0, len(prefix_ids))
            ids_LW[0, prefix], row_LW[0, prefix] = torch.tensor(prefix_ids, device=device), prefix_row
            position_LW[0, prefix] = torch.arange(len(prefix_ids), device=device)
        return cls(
            ids_LW=ids_LW,
            row_LW=row_LW,
            positions_LW=position_LW,
            scored_LW=scored_LW,
            order_N=order_N,
            columns=(row_N, column_N),
            places=places,
            first=tuple(line[0] for line in lines),
        )

    def mask(self, prefix_mask_LS: Tensor) -> Tensor:
        """Mask `[L, S + W]` over a prefix and then the line, 1 where there is a token; for one row per line."""
        return torch.cat([prefix_mask_LS, (self.row_LW >= 0).long()], dim=1)

    def blocks(self, prefix_mask_LS: Tensor, dtype: torch.dtype) -> Tensor:
        """Additive attention mask `[L, 1, W, S + W]`: 0 where a token sees another, else the dtype's lowest number.

        Each token sees the prefix, itself and the earlier tokens of its row.
        """
        sees_prefix_LWS = rearrange(prefix_mask_LS > 0, "l s -> l 1 s").expand(-1, self.row_LW.shape[1], -1)
        return self._blocks(sees_prefix_LWS, dtype)

    def blocks_with_joint_prefix(self, num_prefix: int, num_empty: int, dtype: torch.dtype) -> Tensor:
        """Like `blocks`, for a prefix at the start of the first line.

        Every line sees `num_empty` empty keys, the prefix's keys, and then its own.
        """
        is_prefix_LW = torch.zeros_like(self.row_LW, dtype=torch.bool)
        is_prefix_LW[0, :num_prefix] = True
        sees_prefix_LWS = repeat(~is_prefix_LW, "l w -> l w s", s=num_prefix)
        return self._blocks(functional.pad(sees_prefix_LWS, (num_empty, 0)), dtype)

    def _blocks(self, sees_prefix_LWS: Tensor, dtype: torch.dtype) -> Tensor:
        is_own_LWW = rearrange(self.row_LW, "l w -> l w 1") == rearrange(self.row_LW, "l w -> l 1 w")
        sees_LWW = is_own_LWW & torch.ones_like(is_own_LWW[0]).tril()
        sees_L1WK = rearrange(torch.cat([sees_prefix_LWS, sees_LWW], dim=2), "l w k -> l 1 w k")
        return added(sees_L1WK, dtype)


def pack(lengths: Sequence[int], groups: Sequence[Hashable]) -> list[list[int]]:
    """Row indices in lines, each of one group, that leave little space empty (best fit, longest first)."""
    longest, num_tries = max(lengths), max(2, min(_TRIES, _ROWS_TRIED // len(lengths)))
    widths = {longest + longest * (WIDEST - 1) * i // (num_tries - 1) for i in range(num_tries)}
    tries = [_packed_to_width(lengths, groups, width) for width in sorted(widths)]

    def cost(lines: list[list[int]]) -> float:
        width = max(sum(lengths[b] for b in line) for line in lines)
        return len(lines) * width * (1 + width / _DOUBLE_COST_WIDTH)

    return min(tries, key=cost)


def _packed_to_width(lengths: Sequence[int], groups: Sequence[Hashable], width: int) -> list[list[int]]:
    lines: list[list[int]] = []
    rooms: dict[Hashable, list[tuple[int, int]]] = {}  # each group's lines, sorted by the room left in them
    for b in sorted(range(len(lengths)), key=lambda b: -lengths[b]):
        own = rooms.setdefault(groups[b], [])
        best = bisect.bisect_left(own, (lengths[b], 0))
        room, line = own.pop(best) if best < len(own) else (width, len(lines))
        if line == len(lines):
            lines.append([])
        lines[line].append(b)
        bisect.insort(own, (room - lengths[b], line))
    return lines
