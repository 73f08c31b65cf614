"""Ctrl-C that lets a training step end first.

Knows nothing of training.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
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


_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C and termination


@contextmanager
def raised_interrupts(numbers: Sequence[signal.Signals] = _SIGNALS) -> Iterator[None]:
    """Ctrl-C and termination, or those of the two that are given, raise `KeyboardInterrupt` at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: Any) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt, numbers):
        yield


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
        flag.is_set = True  # and nothing else: the main thread may be in the middle of writing

    with _handled(note, _SIGNALS):
        yield flag


@contextmanager
def _handled(handler: Callable[[int, Any], None], numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Signals call a handler."""
    old = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)
