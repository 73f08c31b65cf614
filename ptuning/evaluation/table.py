"""A table that documents itself: plain records, and for each column a line that says what it holds.

Knows nothing of what is measured.
"""

import importlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Records with the same columns."""

    columns: Mapping[str, str]
    """Column -> what it holds."""
    records: Sequence[Mapping[str, Any]]
    """Records, each of which maps every column to a value."""

    def __post_init__(self) -> None:
        for record in self.records:
            assert record.keys() == self.columns.keys(), f"{sorted(record)} are not {sorted(self.columns)}"

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """The records."""
        return iter(self.records)

    def __len__(self) -> int:
        """The number of records."""
        return len(self.records)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """A record."""
        return self.records[index]

    def column(self, name: str) -> list[Any]:
        """The values of a column."""
        return [record[name] for record in self.records]

    def frame(self) -> Any:
        """The table as a pandas DataFrame."""
        pandas = importlib.import_module("pandas")
        return pandas.DataFrame(list(self.records), columns=list(self.columns))

    def as_dict(self) -> dict[str, Any]:
        """The table as plain data."""
        return {"columns": dict(self.columns), "records": [dict(record) for record in self.records]}


def aligned(cells: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Rows of cells as lines for a terminal.

    Args:
        cells: The rows, all as long.
        left: The columns that are set to the left; the others are set to the right.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
