"""Chooses the rows of each line: one row per line, or several end to end that do not see each other.

Rows of different lengths, padded to the longest, waste part of every matrix product. Packed end to end, they fill the
lines. Knows nothing of tensors or models.
"""

import bisect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

WIDEST = 2  # times the longest row: wider lines leave less space empty, but make attention slower
_TRIES, _ROWS_TRIED = 24, 4096  # widths to try: fewer for many rows, which fill lines of any width
_FULL = 1.01  # times the tokens: no width is tried after lines that leave less empty
_DOUBLE_COST_WIDTH = 5000  # tokens: attention doubles the cost of a line this wide; estimated for SmolLM2-135M

_FEWEST_SCORED, _LEAST_WIDTH, _WIDTH_STEP = 8, 128, 16  # of rounded sizes
_FINE, _COARSE = 16, 8  # parts of a power of two: a size grows by at most 1/8 or 1/4


@dataclass(frozen=True)
class Sizes:
    """How the sizes of lines are chosen: as they come, or rounded up so that few shapes occur.

    Kernels, their plans and CUDA graphs are made once per shape, so a GPU is faster with few shapes. A CPU is not.
    """

    are_rounded: bool = False

    def num_lines(self, least: int) -> int:
        """The number of lines to make for `least` lines that are needed."""
        return _rounded(least, _COARSE) if self.are_rounded else least

    def width(self, least: int) -> int:
        """The width of lines that need `least` places."""
        if not self.are_rounded:
            return least
        return _WIDTH_STEP * -(-_rounded(least, _FINE) // _WIDTH_STEP)

    def num_scored(self, least: int) -> int:
        """The number of scored places to make for `least` that a line needs."""
        return max(_FEWEST_SCORED, _power_of_two(least)) if self.are_rounded else least

    def least_width(self, longest: int) -> int:
        """The narrowest lines to make for rows packed end to end, the longest of which has `longest` tokens."""
        return max(_LEAST_WIDTH, _power_of_two(longest)) if self.are_rounded else longest

    def packed_widths(self, longest: int, num_rows: int) -> list[int]:
        """The widths of lines to try, for rows packed end to end."""
        if self.are_rounded:
            return [self.least_width(longest)]
        num_tries = max(2, min(_TRIES, _ROWS_TRIED // num_rows))
        return sorted({longest + longest * (WIDEST - 1) * i // (num_tries - 1) for i in range(num_tries)})


def pack(lengths: Sequence[int], groups: Sequence[Hashable], sizes: Sizes = Sizes()) -> list[list[int]]:
    """Row indices in lines, each of one group, that leave little space empty (best fit, longest first)."""
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    best, least = [[b] for b in order], float("inf")
    for width in sizes.packed_widths(max(lengths), len(lengths)):
        lines, filled = _packed_to_width(lengths, groups, order, width)
        cost = len(lines) * filled * (1 + filled / _DOUBLE_COST_WIDTH)
        if cost < least:
            best, least = lines, cost
        if len(lines) * filled <= _FULL * sum(lengths):
            break
    return best


def _packed_to_width(
    lengths: Sequence[int], groups: Sequence[Hashable], order: Sequence[int], width: int
) -> tuple[list[list[int]], int]:
    """The rows of each line, and how far the fullest line is filled."""
    lines: list[list[int]] = []
    least_room = width
    rooms: dict[Hashable, list[tuple[int, int]]] = {}  # each group's lines, sorted by the room left in them
    for b in order:
        own = rooms.setdefault(groups[b], [])
        best = bisect.bisect_left(own, (lengths[b], 0))
        room, line = own.pop(best) if best < len(own) else (width, len(lines))
        if line == len(lines):
            lines.append([])
        lines[line].append(b)
        left = room - lengths[b]
        bisect.insort(own, (left, line))
        if left < least_room:
            least_room = left
    return lines, width - least_room


def _rounded(size: int, parts: int) -> int:
    """`size` rounded up to a whole number of parts of the least power of two that holds it."""
    part = max(1, _power_of_two(size) // parts)
    return part * -(-size // part)


def _power_of_two(size: int) -> int:
    """The least power of two that is not below `size`."""
    return 1 << max(size - 1, 0).bit_length()
