"""Rows that a program holds, in whatever holds them."""

from types import SimpleNamespace
from typing import Any

import datasets
import numpy
import pandas
import pyarrow
import pytest

from ptuning.data import as_row, records, rows_of
from ptuning.errors import DataError

ROWS = [{"text": "a film", "label": 1}, {"text": "two hours", "label": 0}]


def in_polars(rows: list[dict[str, Any]]) -> Any:
    """What polars' frames share with pandas', and what they have of their own."""
    return SimpleNamespace(columns=["text", "label"], to_dict=lambda: None, to_dicts=lambda: rows)


@pytest.mark.parametrize(
    "held",
    [
        ROWS,
        tuple(ROWS),
        (row for row in ROWS),
        pandas.DataFrame(ROWS),
        pyarrow.Table.from_pylist(ROWS),
        datasets.Dataset.from_list(ROWS),
        in_polars(ROWS),
    ],
    ids=["list", "tuple", "generator", "pandas", "Arrow", "Dataset", "polars"],
)
def test_rows_are_taken_from_what_holds_them(held: Any) -> None:
    assert [dict(each) for each in records(held)] == ROWS


@pytest.mark.parametrize("missing", [None, float("nan"), pandas.NA])
def test_a_missing_value_is_told(missing: Any) -> None:
    with pytest.raises(DataError, match=r"row 1: a missing value; expected a text. Remove the row, or fill it in"):
        records(["a film", missing])


def test_names_of_columns_are_text() -> None:
    assert records(pandas.DataFrame({0: ["a"]})) == [{"0": "a"}]
    assert records([as_row({"text": "a"}, "row 0", ["text"])]) == [{"text": "a"}]


@pytest.mark.parametrize("held", [["a", "b"], pandas.Series(["a", "b"]), numpy.array(["a", "b"])])
def test_texts_are_rows_of_one_column(held: Any) -> None:
    assert [row.values for row in rows_of(held, "row", ["text"])] == [{"text": "a"}, {"text": "b"}]
    with pytest.raises(DataError, match=r"row 0 is a text; expected a mapping with the columns text, label"):
        rows_of(held, "row", ["text", "label"])


def test_classes_of_a_data_set_have_their_names() -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    held = datasets.Dataset.from_list(ROWS, features=features)
    assert [row.values["label"] for row in rows_of(held, "row", ["text", "label"])] == ["good", "bad"]


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ("a film", r"str 'a film'; expected a list of rows, .*\. Put it in a list"),
        (ROWS[0], r"dict \{'text': 'a film', 'label': 1\}; expected a list of rows"),
        (5, r"int 5; expected a list of rows"),
        ([["a film", 1]], r"row 0: list \['a film', 1\]; expected a mapping with the columns, or a text"),
        ([], r"no rows; expected one row or more"),
    ],
)
def test_what_holds_no_rows_is_told_in_a_line(held: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        rows_of(held, "row", ["text"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (0.5, "0.5"),
        (True, "True"),
        (numpy.int64(3), "3"),
        (numpy.float32(0.5), "0.5"),
        (numpy.bool_(0), "False"),
        ({"item": "tea", "numbers": [1, None]}, '{"item": "tea", "numbers": [1, null]}'),
        ({"name": "Müller"}, '{"name": "Müller"}'),
    ],
)
def test_numbers_become_their_text(value: Any, text: str) -> None:
    assert as_row({"label": value}, "row 0", ["label"]).values == {"label": text}


@pytest.mark.parametrize("value", [None, float("nan"), numpy.float64("nan")])
def test_a_value_that_is_missing_is_told(value: Any) -> None:
    with pytest.raises(DataError, match=r"row 0: column 'label' holds .*; expected text; this value is missing"):
        as_row({"label": value}, "row 0", ["label"])


def test_columns_as_lists_are_rows() -> None:
    held = {"text": ["a film", "a play"], "label": (1, 0)}
    assert [row.values for row in rows_of(held, "row", ["text", "label"])] == [
        {"text": "a film", "label": "1"},
        {"text": "a play", "label": "0"},
    ]


@pytest.mark.parametrize("held", [{"text": ["a"], "label": ["b", "c"]}, {"text": ["a"], "label": "b"}, {}])
def test_columns_that_make_no_rows_are_told(held: Any) -> None:
    with pytest.raises(DataError, match="expected a list of rows"):
        rows_of(held, "row", ["text"])


@pytest.mark.parametrize("value", [["a"], {"a": b"b"}, {"a": float("nan")}, {"a": "\ud800"}, {1j: 2}])
def test_values_that_have_no_text_are_told(value: Any) -> None:
    with pytest.raises(DataError, match="column 'text' holds"):
        rows_of([{"text": value}], "row", ["text"])
