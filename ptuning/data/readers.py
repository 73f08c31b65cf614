"""Reads data files and hub data sets as rows of text; an error names the row's file and line.

Knows nothing of templates, tokens or models.
"""

import codecs
import csv
import gzip
import io
import itertools
import json
import logging
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from ptuning.data.memory import Rows, records, records_of_dataset
from ptuning.errors import DataError

_log = logging.getLogger(__name__)
_MOST_CHARACTERS = 1 << 28  # of a cell, a line of .jsonl, or a .json file
_TALL_ROW = 5  # line breaks in a row's cells that are told

Record: TypeAlias = tuple[dict[str, Any], str]
"""A row as a file has it, and where it comes from."""


@dataclass(frozen=True)
class Row:
    """A row's columns as text, and where it comes from."""

    values: Mapping[str, str]
    """Column name -> text."""
    where: str
    """Its file and line, for errors."""


def read_rows(source: str, split: str, columns: Iterable[str]) -> list[Row]:
    """Reads a data file, or a hub data set's split.

    Args:
        source: Path of a csv, tsv, json, jsonl (each also as .gz) or parquet file, or of a folder that `datasets`
            saved; or a hub name, `org/name` or `org/name:subset`. Behind a folder or a name `@train[:90%]` takes that
            split.
        split: The split to take of a folder or a hub data set that names none.
        columns: The columns that are needed; their values must be text, or numbers or objects, which become their
            text and their JSON.

    Raises:
        DataError: When the source is missing or empty, lacks a column, or has a value that is not text.
    """
    require_source(source)
    kind, names = _kind(source), list(columns)
    records = _READERS[kind](source) if kind in _READERS else _read_dataset(source, split)
    try:
        rows = [as_row(values, where, names) for values, where in records]
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 text ({error})", "a UTF-8 file", "Convert it") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{source} is no whole gzip file ({error})", "a gzip file", "Copy it again") from error
    except OSError as error:
        raise DataError(
            f"{source} cannot be read ({error.strerror})", "a data file", "Check its permissions"
        ) from error
    if not rows:
        raise DataError(f"{source} has no rows", "one row or more", "Check the file")
    return rows


def require_source(source: str) -> None:
    """Raises `DataError` for a data file that does not exist, before anything is loaded that would read it."""
    if _kind(source) in _READERS and not Path(source).is_file():
        raise DataError(f"data file {source} does not exist", "a csv, json(l) or parquet file", "Check the path")


def _kind(source: str) -> str:
    """The ending of a file's name, without that of compression."""
    return Path(source.lower().removesuffix(".gz")).suffix


@contextmanager
def _opened(source: str) -> Iterator[TextIO]:
    """A text file, unpacked if it is compressed; a byte-order mark is left out."""
    with ExitStack() as stack:
        file: Any = stack.enter_context(Path(source).open("rb"))
        if source.lower().endswith(".gz"):
            file = stack.enter_context(gzip.open(file))
        yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))


def rows_of(rows: Rows, name: str, columns: Iterable[str]) -> list[Row]:
    """The rows that a program gives.

    Args:
        rows: As in `records`.
        name: What each is called in errors, before its number.
        columns: As in `read_rows`.

    Raises:
        DataError: As `read_rows`, and for what holds no rows.
    """
    names = list(columns)
    found = [as_row(each, f"{name} {i}", names) for i, each in enumerate(records(rows))]
    if not found:
        raise DataError(f"no {name}s", "one row or more", "Check what is given")
    return found


def as_row(values: Mapping[str, Any] | str, where: str, columns: Sequence[str]) -> Row:
    """Checks that a row has the columns and that they hold text; numbers, booleans and objects become their text.

    Args:
        values: The row's columns; or its text alone, if one column is needed.
        where: Where the row comes from, for errors.
        columns: The columns that are needed.

    Raises:
        DataError: For a row that lacks a column, or has a value that is not text.
    """
    if isinstance(values, str):
        if len(columns) != 1:
            raise DataError(
                f"{where} is a text", f"a mapping with the columns {', '.join(columns)}", "Give its columns by name"
            )
        values = {columns[0]: values}
    require_columns(Row(values, where), columns)
    return Row({**values, **{name: _text(values[name], name, where) for name in columns}}, where)


def _text(value: Any, column: str, where: str) -> str:
    """A value as text; raises `DataError` for one that is neither text, nor a number, nor an object."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    text = _json(value) if isinstance(value, dict) else value
    if isinstance(text, str) and _is_unicode(text):
        return text
    if isinstance(value, int) or (isinstance(value, float) and not math.isnan(value)):
        return str(value)
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    expected = "text; this value is missing" if missing else "text"
    raise DataError(f"{where}: column {column!r} holds {value!r}", expected, "Correct or remove the row")


def _json(value: dict[Any, Any]) -> str | None:
    """An object as its JSON text; None if JSON cannot hold it."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None


def require_columns(row: Row, columns: Iterable[str]) -> None:
    """Raises `DataError` when the row lacks one of the columns."""
    missing = [name for name in columns if name not in row.values]
    if missing:
        raise DataError(
            f"{row.where} has no column {missing[0]!r}",
            f"the template's and the answer's columns (there are: {', '.join(map(str, row.values)) or 'none'})",
            "Correct the template, the answer or the data",
        )


def _is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can hold and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_csv(source: str) -> Iterator[Record]:
    csv.field_size_limit(_MOST_CHARACTERS)
    with _opened(source) as file:
        quoting: Any = csv.QUOTE_NONE if _kind(source) == ".tsv" else csv.QUOTE_MINIMAL
        reader = csv.DictReader(file, delimiter=_delimiter(source, file.readline()), quoting=quoting, strict=True)
        file.seek(0)
        tall, last = list[str](), 1
        try:
            twice = sorted(name for name, count in Counter(reader.fieldnames or ()).items() if count > 1)
            if twice:
                raise DataError(f"{source} has two columns {twice[0]!r}", "one name per column", "Rename one")
            for values in reader:
                where, first, last = f"{source} line {reader.line_num}", last + 1, reader.line_num
                if last - first >= _TALL_ROW:
                    tall.append(f"{first} to {last}")
                if None in values:
                    raise DataError(
                        f"{where} has more cells than the header", "one cell per column", "Quote cells with commas"
                    )
                yield values, where
        except csv.Error as error:
            raise DataError(
                f"{source} line {reader.line_num + 1} is not CSV ({error})", "one cell per column", "Correct it"
            ) from error
    if tall:
        _log.warning(
            f"{source}: {len(tall):,} rows of {_TALL_ROW} line breaks or more, the first from line {tall[0]}; if these "
            "lines are rows of their own, a quotation mark is not closed"
        )


def has_byte_order_mark(source: str) -> bool:
    """Whether a file is text that begins with UTF-8's mark, as spreadsheets write it; False for what is no file."""
    if not Path(source).is_file():
        return False
    with Path(source).open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def delimiter_of(source: str) -> str:
    """What stands between the cells of a .csv or .tsv file."""
    with _opened(source) as file:
        return _delimiter(source, file.readline())


def _delimiter(source: str, header: str) -> str:
    """What stands between a file's cells: a tab in .tsv; else a comma, or what the header has where it has no comma."""
    if _kind(source) == ".tsv":
        return "\t"
    bare = re.sub(r'"[^"]*"', "", header)  # a quoted name may hold any of them
    return "," if "," in bare else max(_DELIMITERS, key=bare.count)


def _read_json(source: str) -> Iterator[Record]:
    with _opened(source) as file:
        if _kind(source) == ".json":
            text = file.read(_MOST_CHARACTERS)
            if len(text) == _MOST_CHARACTERS:
                received = f"{source} has {_MOST_CHARACTERS:,} characters or more"
                raise DataError(received, "a smaller file, or .jsonl", "Write one object per line, as .jsonl")
            yield from _json_records(source, text)
            return
        for number, line in enumerate(iter(lambda: file.readline(_MOST_CHARACTERS), ""), 1):
            if len(line) == _MOST_CHARACTERS:
                received = f"{source} line {number} has {_MOST_CHARACTERS:,} characters or more"
                raise DataError(received, "a row of less", "Check that it is the file that you mean")
            if line.strip():
                yield _json_record(line, f"{source} line {number}")


def _json_records(source: str, text: str) -> Iterator[Record]:
    """The records of a .json file: an array of objects, or one object per line."""
    try:
        records = json.loads(text)
    except (ValueError, RecursionError):
        records = [line for line in text.split("\n") if line.strip()]  # splitlines would also split at others
    for number, record in enumerate(records if isinstance(records, list) else [records], 1):
        yield _json_record(record, f"{source} record {number}")


def _json_record(record: Any, where: str) -> Record:
    try:
        values = json.loads(record) if isinstance(record, str) else record
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error})", "one object per line", "Correct it") from error
    if not isinstance(values, dict):
        raise DataError(f"{where} holds {values!r}", "an object with columns as keys", "Correct it")
    return values, where


def _read_parquet(source: str) -> Iterator[Record]:
    import datasets

    return _read_table(source, lambda: datasets.Dataset.from_parquet(source), "a parquet file")


def _read_dataset(source: str, split: str) -> Iterator[Record]:
    """The rows of a folder that `datasets` saved, or of a hub data set."""
    import datasets

    place, _, own = (source, "", "") if "@" not in source or Path(source).is_dir() else source.rpartition("@")
    name, _, subset = (place, "", "") if Path(place).is_dir() else place.partition(":")
    wanted = own or split
    if Path(place).is_dir() and not _holds_data(Path(place)):
        raise DataError(f"{place}, a directory without data files", f"one with {', '.join(_READERS)}", "Check the path")
    if any((Path(place) / file).is_file() for file in _SAVED_FILES):
        expected = f"a folder that datasets saved, with a split {wanted!r}"
        return _read_table(source, lambda: _saved(place, wanted), expected)
    expected = f"a data file ({', '.join(_READERS)}) or a hub data set with a split {wanted!r}"
    return _read_table(source, lambda: datasets.load_dataset(name, subset or None, split=wanted), expected)


def _holds_data(folder: Path) -> bool:
    """Whether a folder, or one in it, has a data file; no more is looked at than that takes, and not everything."""
    files = itertools.islice(itertools.chain(folder.iterdir(), folder.glob("*/*")), _MOST_LOOKED_AT)
    return any(each.name in _SAVED_FILES or _kind(each.name) in (*_READERS, *_OTHERS) for each in files)


def _saved(folder: str, split: str) -> Any:
    """A saved data set's split, such as `train[:90%]`; a folder of one split is that split."""
    import datasets

    found = datasets.load_from_disk(folder)
    name, bracket, share = split.partition("[")
    table = found[name] if isinstance(found, datasets.DatasetDict) else found
    if not bracket:
        return table
    low, high = (_row(each, len(table)) for each in share.rstrip("]").split(":"))
    return table.select(range(len(table))[low:high])


def _row(limit: str, num_rows: int) -> int | None:
    """A row's number in a slice: `10`, `90%`, or nothing."""
    if not limit.strip():
        return None
    return round(float(limit.rstrip("% ")) / 100 * num_rows) if "%" in limit else int(limit)


def _read_table(source: str, load: Callable[[], Any], expected: str) -> Iterator[Record]:
    """The rows of what `datasets` loads."""
    try:
        with _quietly():
            table = load()
    except Exception as error:  # each file format and each failure of a hub raises its own kind
        raise DataError(
            f"{source} cannot be read ({type(error).__name__}: {error})", expected, "Check the name"
        ) from error
    for number, values in enumerate(records_of_dataset(table)):
        yield values, f"{source} row {number}"


@contextmanager
def _quietly() -> Iterator[None]:
    """Silences the messages and progress bars of `datasets`: a mistake is told in one line."""
    import datasets

    level, had_bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if had_bars:
            datasets.enable_progress_bars()


_MOST_LOOKED_AT = 10_000  # files of a folder
_OTHERS = (".txt", ".arrow", ".zip", ".zst", ".bz2", ".xz", ".tar", ".xml")  # that `datasets` reads in a folder
_SAVED_FILES = ("state.json", "dataset_dict.json")  # in a folder that `datasets` saved
_DELIMITERS = (",", ";", "\t", "|")
_READERS: dict[str, Callable[[str], Iterator[Record]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}
"""Ending of a file's name -> what reads the file; any other source is a hub data set's name."""
