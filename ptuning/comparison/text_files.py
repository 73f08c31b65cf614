"""Reads a person's files of plain text.

Knows nothing of what the texts are for.
"""

from pathlib import Path

from ptuning.errors import DataError, FileError
from ptuning.files import read_regular

_MOST_BYTES = 1 << 26  # of one file


def text_of(file: Path, setting: str) -> str:
    """The text of a file.

    Args:
        file: The file.
        setting: The setting that names it, for messages.

    Raises:
        DataError: For what cannot be read or is no text in UTF-8.
    """
    try:
        text = read_regular(file, _MOST_BYTES).decode("utf-8-sig")
    except FileError as error:
        raise DataError(f"{setting}: {error.received}", error.expected, error.remedy) from error
    except UnicodeDecodeError as error:
        received = f"{setting}: {file} is not UTF-8 text ({error})"
        raise DataError(received, "a UTF-8 file", "Convert it, or take it out") from error
    if "\0" in text:
        received = f"{setting}: {file} is no text: it holds zero bytes"
        raise DataError(received, "a UTF-8 file", "Convert it, or take it out")
    return text
