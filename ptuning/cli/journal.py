"""Answers that are kept as they come, so that a run which ends half-way loses none and asks for none twice.

Knows nothing of what answers rows.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ptuning.errors import ConfigError
from ptuning.files import disk_errors

_ENDING = ".answers.jsonl"
_SECONDS_BETWEEN_SYNCS = 1.0  # what a power failure may cost is asked for again


class Journal:
    """The answers of a run, in a file beside the one that they are for: a line a row, with the row's number.

    Use it in a `with` block; it is removed by `finish` alone.

    Args:
        output: The file that the answers are for.
        asked: What is asked, as plain data: a journal of other rows or another prompt is refused.
        is_resumed: Whether to go on with an earlier run's journal, where there is one.

    Raises:
        ConfigError: If there is a journal and the run is not resumed, or if it is that of something else.
        FileError: If it cannot be written.
    """

    def __init__(self, output: Path, asked: Mapping[str, Any], is_resumed: bool) -> None:
        self.path = output.with_name(f"{output.name}{_ENDING}")
        self.answers: dict[int, dict[str, Any]] = {}
        """Row's number, from 0 -> its answer."""
        self._synced = 0.0
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
        if self.path.exists() and not is_resumed:
            received = f"{self.path}, the answers of a run that has not ended"
            raise ConfigError(
                received, "none, or --resume", "Add --resume to ask for the other rows only, or remove it"
            )
        with disk_errors(self.path):
            lines = _whole_lines(self.path)
            if lines and lines[0].get("asked") != digest:
                received = f"--resume with {self.path}, which answers other rows, another prompt or other settings"
                raise ConfigError(received, "the run that it was begun with", "Correct the command, or remove the file")
            self._file = self.path.open("a", encoding="utf-8")
            if not lines:
                self._file.truncate(0)
                self._write({"asked": digest})
        self.answers |= {line["row"]: line["answer"] for line in lines[1:]}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, row: int, answer: dict[str, Any]) -> None:
        """Keeps a row's answer."""
        self.answers[row] = answer
        with disk_errors(self.path):
            self._write({"row": row, "answer": answer})

    def finish(self) -> None:
        """Removes the journal, once its answers are in the file that they are for."""
        self._file.close()
        self.path.unlink()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        if time.monotonic() - self._synced > _SECONDS_BETWEEN_SYNCS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()


def digest_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Identifies rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(dict(row), sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal; one that was being written when the run ended is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise ConfigError(f"{path}, which is broken ({error})", "the answers of a run", "Remove it") from error
