"""Which rows share a line."""

from hypothesis import given
from hypothesis import strategies as st

from ptuning.forward.packing import WIDEST, Sizes, pack

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(LENGTHS, st.integers(1, 3))
def test_each_row_has_one_line_of_its_group_that_is_not_too_wide(lengths: list[int], num_groups: int) -> None:
    groups = [b % num_groups for b in range(len(lengths))]
    lines = pack(lengths, groups)
    assert sorted(b for line in lines for b in line) == list(range(len(lengths)))
    assert all(len({groups[b] for b in line}) == 1 for line in lines)
    widths = [sum(lengths[b] for b in line) for line in lines]
    assert max(widths) <= WIDEST * max(lengths)
    assert len(lines) * max(widths) <= len(lengths) * max(lengths)  # never more than rows padded to the longest


def test_unequal_rows_leave_little_empty() -> None:
    lengths = [63, 45, 44, 43, 36, 35, 33, 33, 32, 31, 29, 28, 27, 27, 26, 25, 22, 20, 18, 17, 16, 15, 14, 13]
    lines = pack(lengths, [0] * len(lengths))
    assert len(lines) * max(sum(lengths[b] for b in line) for line in lines) < 1.05 * sum(lengths)


@given(LENGTHS)
def test_rounded_lines_have_one_width_and_hold_all_rows(lengths: list[int]) -> None:
    lines = pack(lengths, [0] * len(lengths), Sizes(are_rounded=True))
    assert sorted(b for line in lines for b in line) == list(range(len(lengths)))
    assert max(sum(lengths[b] for b in line) for line in lines) <= 128


@given(st.integers(1, 5000))
def test_rounded_sizes_are_few_and_near(size: int) -> None:
    exact, rounded = Sizes(), Sizes(are_rounded=True)
    assert exact.num_lines(size) == exact.width(size) == exact.num_scored(size) == size
    assert size <= rounded.num_lines(size) <= 1.25 * size
    assert size <= rounded.width(size) <= max(1.125 * size, size + 15)
    assert rounded.width(size) % 16 == 0
    assert size <= rounded.num_scored(size) <= max(8, 2 * size)
    assert rounded.num_lines(rounded.num_lines(size)) == rounded.num_lines(size)


def test_few_rounded_sizes_occur() -> None:
    rounded = Sizes(are_rounded=True)
    assert len({rounded.num_lines(n) for n in range(1, 65)}) == 20
    assert len({rounded.width(n) for n in range(1, 1025)}) == 32
