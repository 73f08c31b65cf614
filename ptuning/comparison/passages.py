"""Reads a person's documents as passages: short texts that can stand in front of a row.

The rows of a table are passages as they are. A file of text is cut: its sentences are joined in their order as long as
a passage has at most 100 words, and a longer sentence is cut after each 100 words. Paragraphs are joined with a line
break. No passage spans two files. Knows nothing of models, or of how passages are found.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ptuning.comparison.text_files import text_of
from ptuning.data import read_rows
from ptuning.errors import DataError

COLUMN = "text"
"""The column of a table that holds the passages."""
MOST_WORDS = 100
"""Words of a passage that is cut from a file."""
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_TEXTS = (".txt", ".md")
_SETTING = "compare.documents"
_EXPECTED = f"a folder of {' and '.join(_TEXTS)} files, or a csv or jsonl file with a column {COLUMN}"


def read_passages(source: str) -> list[str]:
    """The passages of a folder, of a file of text, or of a table with a column `text`.

    Args:
        source: A folder, whose files are read in the order of their paths, folders in it included and hidden ones left
            out; or a file.

    Raises:
        DataError: For what is missing, empty or not text.
    """
    path = Path(source)
    if not path.exists():
        raise DataError(f"{_SETTING}: {source} does not exist", _EXPECTED, "Check the path")
    if path.is_dir():
        files = [each for each in sorted(path.rglob("*")) if _is_text(each.relative_to(path)) and each.is_file()]
        if not files:
            raise DataError(f"{_SETTING}: {source}, a folder without documents", _EXPECTED, "Check the path")
        found = [passage for file in files for passage in passages_of(text_of(file, _SETTING))]
    elif path.name.lower().removesuffix(".gz").endswith(_TABLES):
        found = [text for row in read_rows(source, "train", [COLUMN]) if (text := row.values[COLUMN].strip())]
    elif _is_text(Path(path.name)):
        found = passages_of(text_of(path, _SETTING))
    else:
        raise DataError(f"{_SETTING}: {source}", _EXPECTED, "Give one of these")
    if not found:
        raise DataError(f"{_SETTING}: {source} holds no words", _EXPECTED, "Write some, or leave it out")
    return found


def _is_text(path: Path) -> bool:
    return path.name.lower().endswith(_TEXTS) and not any(part.startswith(".") for part in path.parts)


def passages_of(text: str) -> list[str]:
    """A text cut into passages of at most 100 words."""
    found, num_words = list[str](), 0
    for before, piece in _pieces(text):
        count = len(piece.split())
        if found and num_words + count <= MOST_WORDS:
            found[-1] += before + piece
            num_words += count
        else:
            found.append(piece)
            num_words = count
    return found


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """The sentences of a text, the long ones cut, each with what stands before it where it is joined to another."""
    for paragraph in re.split(r"\n\s*\n", text):
        before = "\n"
        for sentence in re.split(r"(?<=[.!?])\s+", paragraph.strip()):
            words = sentence.split()
            for i in range(0, len(words), MOST_WORDS):
                yield before, " ".join(words[i : i + MOST_WORDS])
                before = " "
