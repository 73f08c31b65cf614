"""Ctrl-C that lets a training step end first.

Knows nothing of training.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or a termination signal came; a checkpoint was written before this was raised."""


class Flag:
    """True once a signal has come."""

    def __init__(self) -> None:
        self.is_set = False

    def __bool__(self) -> bool:
        return self.is_set


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """A termination signal raises `KeyboardInterrupt`, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


@contextmanager
def noted_interrupts() -> Iterator[Flag]:
    """Notes Ctrl-C and termination so that the step can end first; a second Ctrl-C ends at once."""
    flag = Flag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def note(number: int, _: Any) -> None:
        if flag.is_set:
            raise KeyboardInterrupt
        flag.is_set = True
        print("\ninterrupted: finishing this step and writing a checkpoint", file=sys.stderr)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
