"""Rows laid in lines: each token once, in its place, and blind to other rows."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ptuning.data.examples import Example
from ptuning.forward.lines import Lines
from ptuning.forward.packing import Sizes, pack

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def rows_of(lengths: list[int]) -> list[Example]:
    """Rows of two shared tokens, text, and an answer of two."""
    numbers = iter(range(10, 10_000))
    return [Example([-1, 5, *(next(numbers) for _ in range(n))], [next(numbers), 3]) for n in lengths]


def lines_of(lengths: list[int], end_to_end: bool = True, sizes: Sizes = Sizes()) -> Lines:  # noqa: B008
    rows = rows_of(lengths)
    lines = pack([n + 1 for n in lengths], [0] * len(rows)) if end_to_end else [[b] for b in range(len(rows))]
    return Lines.of(rows, [2] * len(rows), lines, sizes=sizes)


@given(LENGTHS, st.booleans(), st.booleans())
def test_lines_hold_what_is_left_of_the_rows(lengths: list[int], end_to_end: bool, are_rounded: bool) -> None:
    lines, rows = lines_of(lengths, end_to_end, Sizes(are_rounded)), rows_of(lengths)
    for b, row in enumerate(rows):
        own, is_own = [*row.ids, *row.answer_ids], lines.row_LW == b
        assert lines.ids_LW[is_own].tolist() == own[2:-1]  # the last answer token predicts nothing
        assert lines.positions_LW[is_own].tolist() == list(range(2, len(own) - 1))
    assert int((lines.row_LW >= 0).sum()) == sum(lengths) + len(lengths)
    scored = [i for row in rows for i in (row.ids[-1], row.answer_ids[0])]
    targets = [i for row in rows for i in row.answer_ids]
    assert lines.ids_LW.flatten()[lines.scored_N].tolist() == scored
    assert lines.ids_LW.take_along_dim(lines.scored_LK, 1).flatten()[lines.order_N].tolist() == scored
    assert lines.targets_LK.flatten()[lines.order_N].tolist() == targets
    assert int((lines.targets_LK != -100).sum()) == len(targets)  # what fills a line up has no target


@given(LENGTHS)
def test_every_token_is_found_again(lengths: list[int]) -> None:
    lines, rows = lines_of(lengths), rows_of(lengths)
    row_N, position_N, line_N, place_N = lines.tokens()
    ids = [[*row.ids, *row.answer_ids] for row in rows]
    found = [ids[b][p] for b, p in zip(row_N.tolist(), position_N.tolist(), strict=True)]
    assert lines.ids_LW[line_N, place_N].tolist() == found
    assert all(b in lines.row_LW[i] for i, b in enumerate(lines.first))


def test_a_token_sees_the_prefix_and_what_is_before_it_of_its_own_row() -> None:
    lines = Lines.of(rows_of([2, 1]), [2, 2], [[0, 1]])
    assert lines.row_LW.tolist() == [[0, 0, 0, 1, 1]]
    sees = lines.blocks(torch.tensor([[0, 1]]), torch.float32)[0, 0] == 0
    own = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert sees.int().tolist() == [[0, 1, *row] for row in own]


def test_joint_prefix_comes_first_and_is_seen_by_all_lines_but_not_twice_by_itself() -> None:
    lines = Lines.of(rows_of([3, 2, 1]), [2, 2, 2], [[0], [1], [2]], prefix_ids=(-1, -2))
    assert lines.shape.num_prefix == 2
    assert lines.ids_LW[0, :2].tolist() == [-1, -2]
    assert lines.positions_LW[0, :2].tolist() == [0, 1]
    is_prefix_LW = torch.zeros_like(lines.row_LW, dtype=torch.bool)
    is_prefix_LW[0, :2] = True
    assert not torch.isin(lines.row_LW[is_prefix_LW], lines.row_LW[~is_prefix_LW]).any()
    counts = [int((lines.row_LW == row).sum()) for row in range(3)]
    assert counts == [4, 3, 2]  # with the first of two answer tokens
    sees_LWK = lines.blocks_with_joint_prefix(0, torch.float32)[:, 0] == 0
    assert not sees_LWK[0, :2, :2].any()
    assert sees_LWK[~is_prefix_LW][:, :2].all()
    own = sees_LWK[:, :, 2:]
    for line, row_W in enumerate(lines.row_LW.tolist()):
        for place, row in enumerate(row_W):
            expected = [other == row and j <= place for j, other in enumerate(row_W)]
            assert own[line, place].tolist() == expected


def test_shapes_are_told_apart_by_sizes_alone() -> None:
    same = lines_of([5, 6], sizes=Sizes(True)), lines_of([6, 4], sizes=Sizes(True))
    assert same[0].shape == same[1].shape
    assert hash(same[0].shape) == hash(same[1].shape)
    assert same[0].numbers.shape == same[1].numbers.shape
    assert lines_of([300], sizes=Sizes(True)).shape != same[0].shape
