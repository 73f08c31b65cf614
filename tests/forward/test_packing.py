"""Rows laid end to end: each token once, in its place, and blind to other rows."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ptuning.data.batches import Batch, collate
from ptuning.data.examples import Example
from ptuning.forward.packing import WIDEST, PackedLines, pack

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def batch_of(lengths: list[int], padding_side: str = "right") -> Batch:
    """Rows of two shared tokens, text, and an answer of two."""
    numbers = iter(range(10, 10_000))
    examples = [Example([-1, 5, *(next(numbers) for _ in range(n))], [next(numbers), 3]) for n in lengths]
    return collate(examples, 0, padding_side)


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


@given(LENGTHS, st.sampled_from(["left", "right"]), st.booleans())
def test_lines_hold_what_is_left_of_the_rows(lengths: list[int], side: str, end_to_end: bool) -> None:
    batch = batch_of(lengths, side)
    lines = PackedLines.of(batch, [2] * len(lengths), [0] * len(lengths) if end_to_end else None)
    for b, row in enumerate(batch.ids_BT):
        own = row[batch.mask_BT[b] > 0]
        is_own = lines.row_LW == b
        assert lines.ids_LW[is_own].tolist() == own[2:-1].tolist()  # the last answer token predicts nothing
        assert lines.positions_LW[is_own].tolist() == list(range(2, len(own) - 1))
    in_lines = lines.ids_LW[lines.scored_LW]
    assert in_lines[lines.order_N].tolist() == batch.ids_BT[batch.scored_BT].tolist()


def test_a_token_sees_the_prefix_and_what_is_before_it_of_its_own_row() -> None:
    lines = PackedLines.of(batch_of([2, 1]), [2, 2], [0, 0])
    assert lines.row_LW.tolist() == [[0, 0, 0, 1, 1]]
    sees = lines.blocks(torch.tensor([[0, 1]]), torch.float32)[0, 0] == 0
    own = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert sees.int().tolist() == [[0, 1, *row] for row in own]


def test_joint_prefix_comes_first_and_is_seen_by_all_lines_but_not_twice_by_itself():
    batch = batch_of([3, 2, 1])
    lines = PackedLines.of(batch, [2, 2, 2], prefix_ids=(-1, -2))
    prefix_row = int(lines.row_LW.max())
    assert prefix_row == 3
    assert lines.ids_LW[0, :2].tolist() == [-1, -2]
    assert lines.positions_LW[0, :2].tolist() == [0, 1]
    assert lines.row_LW[0, :2].tolist() == [prefix_row, prefix_row]
    counts = [int((lines.row_LW == row).sum()) for row in range(4)]
    assert counts == [4, 3, 2, 2]  # with the first of two answer tokens
    assert not lines.scored_LW[0, :2].any()
    sees_LWK = lines.blocks_with_joint_prefix(2, 0, torch.float32)[:, 0] == 0
    assert not sees_LWK[0, :2, :2].any()
    assert sees_LWK[lines.row_LW != prefix_row][:, :2].all()
    own = sees_LWK[:, :, 2:]
    for line, row_W in enumerate(lines.row_LW.tolist()):
        for place, row in enumerate(row_W):
            expected = [other == row and j <= place for j, other in enumerate(row_W)]
            assert own[line, place].tolist() == expected
