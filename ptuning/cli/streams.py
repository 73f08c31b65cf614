"""Standard output and error that take whatever is written: escaped where it would steer a terminal.

Knows nothing of what is written.
"""

import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ptuning.training import raised_interrupts

_OTHER_CONTROLS = [*range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]  # C1, direction
_SHOWN = {
    **{i: f"\\x{i:02x}" for i in range(0x20) if chr(i) not in "\t\n"},
    **{i: f"\\x{i:02x}" if i < 0x100 else f"\\u{i:04x}" for i in _OTHER_CONTROLS},
}
"""Character -> what is written in its place."""
_SHOWN_BESIDE_BARS = {i: shown for i, shown in _SHOWN.items() if chr(i) != "\r"}  # a progress bar returns to its start


class OutputError(Exception):
    """Standard output could not be written to."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.has_no_reader = error.errno == errno.EPIPE
        """Whether whoever read it, such as head, has seen enough."""


class _Plain:
    """A text stream that writes control characters as escapes, and everything else of the stream below."""

    def __init__(self, below: Any, shown: dict[int, str]) -> None:
        self._below, self._shown = below, shown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)

    def write(self, text: str) -> int:
        """Writes the text; its length."""
        with _output_errors():
            self._below.write(text.translate(self._shown))
        return len(text)

    def flush(self) -> None:
        """Writes what is still held."""
        with _output_errors():
            self._below.flush()


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(error) from error


class _Messages(_Plain):
    """The same for messages, which nobody may be there to read: then they are dropped, and the work goes on."""

    def write(self, text: str) -> int:
        """Writes the text where that is possible; its length."""
        shown = text.translate(self._shown).replace("\\x1b[A", "\x1b[A")  # several bars move up a line
        with suppress(OSError):
            self._below.write(shown)
        return len(text)

    def flush(self) -> None:
        """Writes what is still held, where that is possible."""
        with suppress(OSError):
            self._below.flush()


@contextmanager
def plain_streams() -> Iterator[None]:
    """Standard output and error take any text, also where they are closed; what they cannot encode is escaped.

    A termination signal raises `KeyboardInterrupt`, as Ctrl-C does.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    errors = [getattr(stream, "errors", None) for stream in before]
    _reconfigure(before, ["backslashreplace"] * 2)
    sys.stdout, sys.stderr = _Plain(before[0], _SHOWN), _Messages(before[1], _SHOWN_BESIDE_BARS)
    try:
        with raised_interrupts([signal.SIGTERM]):
            yield
    finally:
        sys.stdout, sys.stderr = before
        _reconfigure(before, errors)


def _reconfigure(streams: Sequence[Any], errors: Sequence[str | None]) -> None:
    """Sets what streams do with what they cannot encode."""
    for stream, own in zip(streams, errors, strict=True):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=own)


def _open_closed() -> None:
    """Opens the null device in the place of standard streams that are closed, before a file takes their numbers."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - lives on


def drop_output() -> None:
    """Nothing more is written to standard output: its rest would fail again when the process ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # it has no number of its own, as in a notebook
        return
