"""A documented table: plain records, each column with a line on what it holds; a pandas frame on demand.

Knows nothing of what is measured.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Records with the same columns."""

    columns: Mapping[str, str]
    """Name -> what it holds."""
    records: Sequence[Mapping[str, Any]]
    """One mapping a record, each with every column."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """The records."""
        return iter(self.records)

    def __len__(self) -> int:
        """How many records there are."""
        return len(self.records)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """A record."""
        return self.records[index]

    def column(self, name: str) -> list[Any]:
        """A column's values."""
        return [record[name] for record in self.records]

    def frame(self) -> Any:
        """The same as a pandas DataFrame."""
        pandas = importlib.import_module("pandas")
        return pandas.DataFrame(list(self.records), columns=list(self.columns))

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"columns": dict(self.columns), "records": [dict(record) for record in self.records]}
