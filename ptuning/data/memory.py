"""Rows as a program holds them: mappings, texts, data frames, data sets.

Knows nothing of files, templates or models, nor of the libraries whose tables it reads.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from ptuning.errors import DataError

_ROWS_AT_ONCE = 1000
Rows: TypeAlias = Iterable[Any]
"""Mappings with a row's columns; or texts, for a template with one column; a mapping of columns, each a list; a pandas
or polars frame, an Arrow table, or a `datasets.Dataset`."""


def records(rows: Rows) -> list[Mapping[str, Any] | str]:
    """Each row's columns, or its text alone.

    Args:
        rows: As above. The numbers of a `ClassLabel` column become its names.

    Raises:
        DataError: For anything else.
    """
    if isinstance(rows, Mapping) and _are_columns(rows):
        rows = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    if isinstance(rows, str | bytes | Mapping):
        raise DataError(_told(rows), "a list of rows, each a text or a mapping with the columns", "Put it in a list")
    found = [_own_columns(each) for each in _iterated(rows)]
    for i, each in enumerate(found):
        if isinstance(each, str | Mapping):
            continue
        if each is None or type(each).__name__ in ("float", "NAType"):  # as a frame tells a missing value
            raise DataError(f"row {i}: a missing value", "a text", "Remove the row, or fill it in")
        raise DataError(f"row {i}: {_told(each)}", "a mapping with the columns, or a text", "Give one for each row")
    return found


def _are_columns(rows: Mapping[Any, Any]) -> bool:
    """Whether a mapping holds columns, each a list with a value for every row, in place of one row."""
    lists = [each for each in rows.values() if isinstance(each, list | tuple)]
    return bool(lists) and len(lists) == len(rows) and len(set(map(len, lists))) == 1


def _own_columns(row: Any) -> Any:
    """A row's columns by their names as text; of a `Row`, as files are read, its values."""
    own = row if isinstance(row, Mapping) else getattr(row, "values", None)
    if not isinstance(own, Mapping):
        return row
    return own if all(isinstance(name, str) for name in own) else {str(name): value for name, value in own.items()}


def _iterated(rows: Any) -> Iterable[Any]:
    for name in ("to_dicts", "to_pylist"):  # polars, Arrow
        if hasattr(rows, name):
            return list(getattr(rows, name)())
    if hasattr(rows, "columns") and hasattr(rows, "to_dict"):  # pandas
        return list(rows.to_dict("records"))
    if isinstance(getattr(rows, "features", None), Mapping):  # a column of a data set has features of another kind
        return records_of_dataset(rows)
    try:
        return iter(rows)
    except TypeError:
        raise DataError(_told(rows), "a list of rows, each a mapping with the columns", "Give such a list") from None


def records_of_dataset(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of a `datasets.Dataset`, the numbers of `ClassLabel` columns as their names.

    Pictures and sounds stay as they are stored: to decode one may read any file, or ask any host, that a row names.
    """
    names = {name: each.int2str for name, each in (dataset.features or {}).items() if hasattr(each, "int2str")}
    for values in _undecoded(dataset):
        named = {name: of(values[name]) for name, of in names.items() if isinstance(values[name], int)}
        yield {**values, **named}


def _undecoded(dataset: Any) -> Iterator[dict[str, Any]]:
    """A data set's rows as Arrow holds them, where it has no other format."""
    if not hasattr(dataset, "format") or dataset.format["type"] is not None:
        yield from dataset
        return
    for batch in dataset.with_format("arrow").iter(_ROWS_AT_ONCE):
        yield from batch.to_pylist()


def _told(value: Any) -> str:
    """What was given, briefly."""
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) < 60 else shown[:56] + ' ...'}"
