"""A table says what its columns hold, and its records have these columns and no others."""

import pytest

from ptuning.evaluation.table import Table

COLUMNS = {"name": "what it is called", "size": "how large it is"}


def test_columns_and_records_are_plain_data():
    table = Table(COLUMNS, [{"name": "a", "size": 1}, {"name": "b", "size": 2}])
    assert table.column("size") == [1, 2]
    assert table.as_dict() == {"columns": COLUMNS, "records": list(table)}


@pytest.mark.parametrize("record", [{"name": "a"}, {"name": "a", "size": 1, "colour": "red"}, {"name": "a", "sise": 1}])
def test_record_with_other_columns_is_a_bug(record):
    with pytest.raises(AssertionError, match=r"are not \['name', 'size'\]"):
        Table(COLUMNS, [{"name": "b", "size": 2}, record])
