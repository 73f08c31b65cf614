"""Rows -> token ids -> right-padded, length-grouped batches.

Knows nothing of models or training. Every bad row is named by its file and line.
"""

import csv
import dataclasses
import json
import logging
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning.errors import DataError
from ptuning.template import Task, Template, TemplateEncoder, Verbalizer, text_ids

_log = logging.getLogger(__name__)

IGNORED = -100  # a label that is not a label, as everywhere in the field
_FILE_KINDS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_BATCHES_PER_WINDOW = 50  # rows are shuffled, then grouped by length within windows of this many batches


@dataclass(frozen=True)
class Row:
    """A row's columns as text, and where it stands."""

    values: Mapping[str, str]
    where: str


@dataclass(frozen=True)
class Example:
    """A row as token ids; negative ids are virtual tokens."""

    ids: list[int]
    """Everything before the answer."""
    answer_ids: list[int]
    """The answer's tokens; empty where the row has no answer."""
    label: int | None = None
    """The index of the row's label in the verbalizer, where there is one."""
    was_cut: bool = False
    """Whether the text field was shortened to fit."""

    def __len__(self) -> int:
        return len(self.ids) + len(self.answer_ids)


@dataclass(frozen=True)
class Batch:
    """Padded rows. T counts the slots' negative ids too."""

    ids_BT: Tensor
    """Token ids `[B, T]`; virtual token i is -(i + 1)."""
    mask_BT: Tensor
    """1 where a row has a token, 0 where it is padded, `[B, T]`."""
    labels_BT: Tensor
    """The answers' ids where they stand in the row, elsewhere -100, `[B, T]`."""
    num_shared: int
    """Leading virtual tokens that all rows share and that come before every position whose logits are needed."""

    @property
    def scored_BT(self) -> Tensor:
        """True at the N positions whose logits are needed: each predicts the label at the position after it."""
        return torch.nn.functional.pad(self.labels_BT[:, 1:] != IGNORED, (0, 1))

    @property
    def targets_N(self) -> Tensor:
        """The labels to be predicted at the scored positions, in row order."""
        labels_BT = self.labels_BT[:, 1:]
        return labels_BT[labels_BT != IGNORED]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(self.ids_BT.to(device), self.mask_BT.to(device), self.labels_BT.to(device), self.num_shared)


class Coder:
    """Turns rows of a task into examples with one tokenizer.

    Args:
        task: The template, the answer and the verbalizer.
        tokenizer: The base model's tokenizer.
        max_positions: Positions the model has; None for no limit.
    """

    def __init__(self, task: Task, tokenizer: Any, max_positions: int | None = None) -> None:
        self.task = task
        self._tokenizer = tokenizer
        self._encoder = TemplateEncoder(Template.parse(task.template), tokenizer, task.chat_template)
        self._answer = Template.parse(task.answer)
        self.labels = tuple(task.verbalizer or ())
        self.label_ids = Verbalizer(task.verbalizer).token_ids(tokenizer) if task.verbalizer else []
        self._max_positions = sys.maxsize if max_positions is None else max_positions
        self.max_length = min(task.max_length or sys.maxsize, self._max_positions)

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """Encodes rows with their answers.

        Raises:
            DataError: Naming the row, for a missing column, a label the verbalizer does not know or a row that cannot
                fit the model's positions.
        """
        answers = [self._answer_ids(row) for row in rows]
        reserved = [self.longest_label or len(answer) for answer in answers]  # a label must not decide what is cut
        rooms = [self.max_length - num_tokens for num_tokens in reserved]
        examples = self._questions(rows, rooms)
        labels = [self.labels.index(row.values[self.task.label_column]) if self.labels else None for row in rows]
        return [
            Example(example.ids, answer, label, example.was_cut)
            for example, answer, label in zip(examples, answers, labels, strict=True)
        ]

    def encode_questions(self, rows: Sequence[Row]) -> list[Example]:
        """Encodes rows that have no answers, with room for the longest label; raises like `encode`."""
        return self._questions(rows, [self.max_length - self.longest_label] * len(rows))

    def encode_prompts(self, rows: Sequence[Row], max_new_tokens: int) -> list[Example]:
        """Encodes rows to be continued; only the model's positions limit what may be written. Raises like `encode`."""
        return self._questions(rows, [min(self.max_length, self._max_positions - max_new_tokens)] * len(rows))

    @property
    def longest_label(self) -> int:
        """Tokens of the longest label's text; 0 without a verbalizer."""
        return max(map(len, self.label_ids), default=0)

    def _questions(self, rows: Sequence[Row], rooms: Sequence[int]) -> list[Example]:
        for row in rows:
            _require_columns(row, self._encoder.template.field_names)
        encoded = self._encoder.encode([row.values for row in rows], rooms, lambda i: rows[i].where)
        return [Example(each.ids, [], None, each.was_cut) for each in encoded]

    def _answer_ids(self, row: Row) -> list[int]:
        _require_columns(row, self._answer.field_names)
        if self.labels:
            label = row.values[self.task.label_column]
            if label not in self.labels:
                raise DataError(
                    f"{row.where}: label {label!r}",
                    f"one of {', '.join(self.labels)}",
                    "Correct it, or add it to data.verbalizer",
                )
            return self.label_ids[self.labels.index(label)]
        text = "".join(
            str(stretch)
            for stretch in self._answer.fill(
                {name: self._encoder.plain(row.values[name]) for name in self._answer.field_names}
            )
        )
        ids = text_ids(self._tokenizer, [text])[0]
        end = self._tokenizer.eos_token_id
        return ids if end is None else [*ids, end]


def read_rows(source: str, split: str, columns: Iterable[str]) -> list[Row]:
    """Reads a data file, or a hub data set's split.

    Args:
        source: Path of a csv, tsv, json, jsonl or parquet file; or a hub name, `org/name` or `org/name:subset`.
        split: The split to take of a hub data set.
        columns: The columns that are needed; their values must be text (whole numbers are taken for labels).

    Raises:
        DataError: When it is missing, empty, lacks a column, or has a row that is not text.
    """
    kind = Path(source).suffix.lower()
    if kind in _FILE_KINDS and not Path(source).is_file():
        raise DataError(f"data file {source} does not exist", "a csv, json(l) or parquet file", "Check the path")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".json": _read_json, ".jsonl": _read_json}
    read = readers.get(kind, lambda source: _read_datasets(source, split))
    names = list(columns)
    try:
        rows = [as_row(values, where, names) for values, where in read(source)]
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 text ({error})", "a UTF-8 file", "Convert it") from error
    except OSError as error:
        raise DataError(
            f"{source} cannot be read ({error.strerror})", "a data file", "Check its permissions"
        ) from error
    if not rows:
        raise DataError(f"{source} has no rows", "one row or more", "Check the file")
    return rows


def collate(examples: Sequence[Example], pad_id: int, padding_side: str = "right") -> Batch:
    """Pads examples to a batch.

    Args:
        examples: The rows; an example without an answer is scored at its last position, to predict what comes next.
        pad_id: What fills the rows; it is masked.
        padding_side: left or right; no row's score depends on it.
    """
    length = max(len(example) for example in examples)
    ids_BT = torch.full((len(examples), length), pad_id)
    mask_BT = torch.zeros_like(ids_BT)
    labels_BT = torch.full_like(ids_BT, IGNORED)
    for i, example in enumerate(examples):
        start = length - len(example) if padding_side == "left" else 0
        end, answer = start + len(example), start + len(example.ids)
        ids_BT[i, start:end] = torch.tensor([*example.ids, *example.answer_ids])
        mask_BT[i, start:end] = 1
        labels_BT[i, answer:end] = torch.tensor(example.answer_ids, dtype=torch.long)
    return Batch(ids_BT, mask_BT, labels_BT, min(_num_leading(example) for example in examples))


class BatchStream:
    """Endless batches of row numbers; `stream[i]` depends on the seed and i alone, so that any step can resume.

    Rows of similar length stand together, to waste little on padding; rows and batches are shuffled anew each epoch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self.num_batches_per_epoch = -(-len(lengths) // batch_size)
        self._epoch, self._batches = -1, list[list[int]]()

    def __getitem__(self, index: int) -> list[int]:
        epoch, place = divmod(index, self.num_batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[place]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        chance = random.Random(f"{self._seed}-{epoch}")
        order = list(range(len(self._lengths)))
        chance.shuffle(order)
        window = self._batch_size * _BATCHES_PER_WINDOW
        grouped = [
            row
            for start in range(0, len(order), window)
            for row in sorted(order[start : start + window], key=self._lengths.__getitem__)
        ]
        batches = [grouped[start : start + self._batch_size] for start in range(0, len(grouped), self._batch_size)]
        chance.shuffle(batches)
        return batches


def by_length(examples: Sequence[Example], batch_size: int) -> list[list[int]]:
    """Row numbers in batches of similar length, the longest first."""
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _num_leading(example: Example) -> int:
    """The example's leading virtual tokens that precede its first scored position."""
    leading = next((i for i, token in enumerate(example.ids) if token >= 0), len(example.ids))
    return min(leading, len(example.ids) - 1)


def _require_columns(row: Row, columns: Iterable[str]) -> None:
    missing = [name for name in columns if name not in row.values]
    if missing:
        raise DataError(
            f"{row.where} has no column {missing[0]!r}",
            f"the template's and the answer's columns (there are: {', '.join(map(str, row.values)) or 'none'})",
            "Correct the template, the answer or the data",
        )


def as_row(values: Mapping[str, Any], where: str, columns: Sequence[str]) -> Row:
    """Checks that a row has the columns and that they hold text; whole numbers are taken as their digits."""
    _require_columns(Row(values, where), columns)
    texts = dict(values)
    for name in columns:
        value = values[name]
        if isinstance(value, int) and not isinstance(value, bool):
            texts[name] = str(value)
        elif not isinstance(value, str) or not _is_unicode(value):
            raise DataError(f"{where}: column {name!r} holds {value!r}", "text", "Correct or remove the row")
    return Row(texts, where)


def _is_unicode(text: str) -> bool:
    """False for halves of surrogate pairs, which JSON can write and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_csv(source: str) -> Iterator[tuple[dict[str, Any], str]]:
    csv.field_size_limit(sys.maxsize)
    with Path(source).open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if source.lower().endswith(".tsv") else ",", strict=True)
        try:
            names = list(reader.fieldnames or ())
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise DataError(f"{source} has two columns {twice[0]!r}", "a name a column", "Rename one")
            for values in reader:
                where = f"{source} line {reader.line_num}"
                if None in values:
                    raise DataError(
                        f"{where} has more cells than the header", "a cell a column", "Quote cells with commas"
                    )
                yield values, where
        except csv.Error as error:
            raise DataError(
                f"{source} line {reader.line_num + 1} is not CSV ({error})", "a cell a column", "Correct it"
            ) from error


def _read_json(source: str) -> Iterator[tuple[dict[str, Any], str]]:
    with Path(source).open(encoding="utf-8-sig") as file:
        if source.lower().endswith(".json"):
            yield from _json_records(source, file.read())
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _json_record(line, f"{source} line {number}")


def _json_records(source: str, text: str) -> Iterator[tuple[dict[str, Any], str]]:
    """A .json file: an array of objects, or an object a line."""
    try:
        records = json.loads(text)
    except (ValueError, RecursionError):
        records = [line for line in text.split("\n") if line.strip()]  # JSON text may hold other line ends
    for number, record in enumerate(records if isinstance(records, list) else [records], 1):
        yield _json_record(record, f"{source} record {number}")


def _json_record(record: Any, where: str) -> tuple[dict[str, Any], str]:
    try:
        values = json.loads(record) if isinstance(record, str) else record
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error})", "an object a line", "Correct it") from error
    if not isinstance(values, dict):
        raise DataError(f"{where} holds {values!r}", "an object with columns as keys", "Correct it")
    return values, where


def _read_datasets(source: str, split: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Parquet files and hub data sets, through `datasets`."""
    import datasets

    try:
        with _quietly():
            if Path(source).suffix.lower() == ".parquet":
                table = datasets.Dataset.from_parquet(source)
            else:
                name, _, subset = source.partition(":")
                table = datasets.load_dataset(name, subset or None, split=split)
    except Exception as error:  # each file format and each way a hub can fail has its own kind
        raise DataError(
            f"{source} cannot be read ({type(error).__name__}: {error})",
            f"a data file ({', '.join(_FILE_KINDS)}) or a hub data set with a split {split!r}",
            "Check the name",
        ) from error
    for number, values in enumerate(table):
        yield values, f"{source} row {number}"


@contextmanager
def _quietly() -> Iterator[None]:
    """Holds the messages and progress bars of `datasets` back: what goes wrong is told in one line."""
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


def num_cut(examples: Iterable[Example]) -> int:
    """How many rows lost the end of their text."""
    return sum(example.was_cut for example in examples)


def warn_of_cut(what: str, examples: Sequence[Example]) -> None:
    """Logs how many rows lost the end of their text, where any did."""
    count = num_cut(examples)
    if count:
        _log.warning(
            f"{what}: {count:,} of {len(examples):,} rows lost the end of their text, being too long for "
            "the model's positions or max_length"
        )


def with_answer(example: Example, answer_ids: list[int]) -> Example:
    """The example with another answer."""
    return dataclasses.replace(example, answer_ids=answer_ids)
