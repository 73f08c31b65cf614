"""Validation rows are set aside in the labels' proportions, the same ones each time."""

from collections import Counter

import pytest

from ptuning.data.readers import Row
from ptuning.data.splitting import split_off


def rows_of(*labels: str) -> list[Row]:
    return [Row({"text": str(i), "label": label}, f"row {i}") for i, label in enumerate(labels)]


def test_labels_keep_their_proportions_and_every_row_goes_to_one_side() -> None:
    rows = rows_of(*["a"] * 60, *["b"] * 30, *["c"] * 10)
    train, validation = split_off(rows, 0.2, 0, "label")
    assert Counter(row.values["label"] for row in validation) == {"a": 12, "b": 6, "c": 2}
    assert sorted([*train, *validation], key=rows.index) == rows
    assert [rows.index(row) for row in train] == sorted(rows.index(row) for row in train)


def test_shares_that_are_no_whole_rows_are_rounded_together() -> None:
    _, validation = split_off(rows_of(*"aaabbbcccddd"), 0.2, 0, "label")  # 0.6 of each label, 2.4 in all
    assert len(validation) == 2


def test_last_row_of_a_label_stays_in_training() -> None:
    for seed in range(20):
        train, validation = split_off(rows_of(*["a"] * 12, "b", "c", "c"), 0.9, seed, "label")
        assert {row.values["label"] for row in train} == {"a", "b", "c"}
        assert "b" not in {row.values["label"] for row in validation}


def test_seed_decides_which_rows() -> None:
    rows = rows_of(*"ab" * 50)
    assert split_off(rows, 0.2, 3, "label") == split_off(rows, 0.2, 3, "label")
    assert split_off(rows, 0.2, 3, "label") != split_off(rows, 0.2, 4, "label")
    assert len(split_off(rows, 0.2, 3)[1]) == 20


@pytest.mark.parametrize(("num_rows", "share", "expected"), [(9, 0.2, 0), (10, 0.2, 2), (10, 0, 0), (9000, 0.5, 1000)])
def test_few_rows_are_left_alone_and_no_more_than_a_thousand_are_set_aside(
    num_rows: int, share: float, expected: int
) -> None:
    assert len(split_off(rows_of(*["a"] * num_rows), share, 0)[1]) == expected


def test_rows_that_show_what_is_trained_on_are_not_set_aside() -> None:
    rows = [
        Row({"text": text, "label": "ab"[i % 2]}, f"row {i}") for i, text in enumerate("aabbccddeeffgghhiijjklmnopqrst")
    ]
    train, validation = split_off(rows, 0.4, 0, "label", ["text"])
    assert not {row.values["text"] for row in train} & {row.values["text"] for row in validation}
    assert 0 < len(validation) < len(split_off(rows, 0.4, 0, "label")[1])
    assert sorted(row.where for row in [*train, *validation]) == sorted(row.where for row in rows)
