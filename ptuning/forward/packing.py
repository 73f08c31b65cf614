"""Lays what is left of a batch's rows in lines: one row a line, or several end to end, each blind to the others.

Rows of different lengths, padded to the longest, waste a part of every matrix product; laid end to end they fill the
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

WIDEST = 2  # of the longest row: wider lines leave less empty, and make attention dearer
_TRIES, _ROWS_TRIED = 64, 4096  # widths that are tried: fewer for many rows, which fill lines of any width
_DEARER = 5000  # tokens: at a width of so many, attention would double the cost; estimated for SmolLM2-135M


@dataclass(frozen=True)
class PackedLines:
    """The last tokens of a batch's rows in L lines of width W."""

    ids_LW: Tensor
    """Token ids; 0 where nothing is."""
    row_LW: Tensor
    """The row that each token is of; -1 where nothing is."""
    positions_LW: Tensor
    """Each token's position in its row."""
    scored_LW: Tensor
    """Whether the token's logits are needed."""
    order_N: Tensor
    """Where each scored position, in the order of rows, is among those of the lines."""
    columns: tuple[Tensor, Tensor]
    """Row and column of each token in the batch, in the order of rows."""
    places: tuple[Tensor, Tensor]
    """Line and place of each token, in the order of rows."""
    first: tuple[int, ...]
    """A row of each line."""

    @classmethod
    def of(
        cls,
        batch: Batch,
        prefix_lengths: Sequence[int],
        groups: Sequence[Hashable] | None = None,
        prefix_ids: Sequence[int] = (),
    ) -> Self:
        """Lays out a batch, without what no scored position needs.

        Args:
            batch: The rows.
            prefix_lengths: How many leading tokens of each row are left out, having been run.
            groups: Rows with equal ones may share a line; None: each row has its own.
            prefix_ids: What all rows begin with, where it is run with them, at the start of the first line.
        """
        device, prefix_lengths_B1 = (
            batch.ids_BT.device,
            torch.tensor(prefix_lengths, device=batch.ids_BT.device)[:, None],
        )
        is_needed_BT = batch.scored_BT.flip(1).cumsum(dim=1).flip(1) > 0  # up to the last scored position
        position_BT = batch.mask_BT.cumsum(dim=1) - 1
        is_rest_BT = (batch.mask_BT > 0) & (position_BT >= prefix_lengths_B1) & is_needed_BT
        lengths = is_rest_BT.sum(dim=1).tolist()
        head, num_rows = len(lengths), len(lengths)  # laid out like a row behind the others
        if prefix_ids:
            lengths, groups = [*lengths, len(prefix_ids)], [0] * (num_rows + 1)
        rows = [[b] for b in range(num_rows)] if groups is None else laid(lengths, groups)
        rows = sorted([sorted(line, key=lambda b: b != head) for line in rows], key=lambda line: line[0] != head)
        width = max(sum(lengths[b] for b in line) for line in rows)
        starts = {b: (i, sum(lengths[b] for b in line[:k])) for i, line in enumerate(rows) for k, b in enumerate(line)}
        line_B, start_B = torch.tensor([starts[b] for b in range(num_rows)], device=device).unbind(dim=1)
        row_N, column_N = is_rest_BT.nonzero(as_tuple=True)
        places = line_B[row_N], (start_B[:, None] + position_BT - prefix_lengths_B1)[is_rest_BT]

        def spread(values: Tensor, empty: int = 0) -> Tensor:
            lines_LW = torch.full((len(rows), width), empty, dtype=values.dtype, device=device)
            return lines_LW.index_put_(places, values)

        scored_LW = spread(batch.scored_BT[is_rest_BT])
        order_N = spread(torch.arange(len(row_N), device=device))[scored_LW].argsort()
        position_LW = spread(position_BT[is_rest_BT])
        ids_LW, row_LW = spread(batch.ids_BT[is_rest_BT]), spread(row_N, -1)
        if prefix_ids:
            own = slice(0, len(prefix_ids))
            ids_LW[0, own], row_LW[0, own] = torch.tensor(prefix_ids, device=device), head
            position_LW[0, own] = torch.arange(len(prefix_ids), device=device)
        first = tuple(line[0] for line in rows)
        return cls(ids_LW, row_LW, position_LW, scored_LW, order_N, (row_N, column_N), places, first)

    def mask(self, prefix_mask_LS: Tensor) -> Tensor:
        """1 where there is something to see, `[L, S + W]`: of a prefix and then of the line. For one row a line."""
        return torch.cat([prefix_mask_LS, (self.row_LW >= 0).long()], dim=1)

    def blocks(self, prefix_mask_LS: Tensor, dtype: torch.dtype) -> Tensor:
        """What is added to attention's scores `[L, 1, W, S + W]`: 0 where a token sees, else the least number.

        Each token sees the prefix, itself and what is before it of its own row.
        """
        sees_prefix_LWS = rearrange(prefix_mask_LS > 0, "l s -> l 1 s").expand(-1, self.row_LW.shape[1], -1)
        return self._blocks(sees_prefix_LWS, dtype)

    def blocks_behind_head(self, num_head: int, num_empty: int, dtype: torch.dtype) -> Tensor:
        """The same where the prefix is the head of the first line, put before every line's keys behind empty ones."""
        is_head_LW = torch.zeros_like(self.row_LW, dtype=torch.bool)
        is_head_LW[0, :num_head] = True
        sees_head_LWS = repeat(~is_head_LW, "l w -> l w s", s=num_head)
        return self._blocks(functional.pad(sees_head_LWS, (num_empty, 0)), dtype)

    def _blocks(self, sees_prefix_LWS: Tensor, dtype: torch.dtype) -> Tensor:
        is_own_LWW = rearrange(self.row_LW, "l w -> l w 1") == rearrange(self.row_LW, "l w -> l 1 w")
        sees_LWW = is_own_LWW & torch.ones_like(is_own_LWW[0]).tril()
        sees_L1WK = rearrange(torch.cat([sees_prefix_LWS, sees_LWW], dim=2), "l w k -> l 1 w k")
        return added(sees_L1WK, dtype)


def laid(lengths: Sequence[int], groups: Sequence[Hashable]) -> list[list[int]]:
    """Row numbers in lines, rows of a group end to end, so that little is left empty (best fit, longest first)."""
    longest, num_tries = max(lengths), max(2, min(_TRIES, _ROWS_TRIED // len(lengths)))
    widths = {longest + longest * (WIDEST - 1) * i // (num_tries - 1) for i in range(num_tries)}
    tries = [_fitted(lengths, groups, width) for width in sorted(widths)]

    def cost(lines: list[list[int]]) -> float:
        width = max(sum(lengths[b] for b in line) for line in lines)
        return len(lines) * width * (1 + width / _DEARER)

    return min(tries, key=cost)


def _fitted(lengths: Sequence[int], groups: Sequence[Hashable], width: int) -> list[list[int]]:
    lines: list[list[int]] = []
    rooms: dict[Hashable, list[tuple[int, int]]] = {}  # each group's lines by the room that is left in them
    for b in sorted(range(len(lengths)), key=lambda b: -lengths[b]):
        own = rooms.setdefault(groups[b], [])
        best = bisect.bisect_left(own, (lengths[b], 0))
        room, line = own.pop(best) if best < len(own) else (width, len(lines))
        if line == len(lines):
            lines.append([])
        lines[line].append(b)
        bisect.insort(own, (room - lengths[b], line))
    return lines
