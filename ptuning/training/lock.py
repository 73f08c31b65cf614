"""A lock that one process at a time holds on a directory; the system frees it when the process ends, however it ends.

Knows nothing of what else is in the directory.
"""

import errno
import logging
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from ptuning.errors import FileError
from ptuning.files import disk_errors

if sys.platform != "win32":
    import fcntl

_log = logging.getLogger(__name__)
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class DirectoryLock:
    """A file that is there while a process holds the lock, and after a process that was killed.

    A killed process holds nothing: its file can be locked at once.

    Args:
        path: The file, in the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def is_held_elsewhere(self) -> bool:
        """Whether another process holds the lock now; touches nothing."""
        with disk_errors(self.path.parent):
            if not self.path.exists():
                return False
            handle = os.open(self.path, os.O_RDWR)
        try:
            return _lock(handle) is False
        finally:
            os.close(handle)

    @property
    def holder(self) -> str:
        """Who holds the lock, for people."""
        try:
            return self.path.read_text(encoding="utf-8").strip() or "another process"
        except FileNotFoundError:  # it has just ended
            return "another process"

    def acquire(self) -> bool:
        """Takes the lock, and makes the directory where there is none; False where another process holds it.

        Where the system or the file system has no locks, this is logged and the answer is True.
        """
        with disk_errors(self.path.parent):
            handle = self._locked()
            if handle is None:
                return False
            self._handle = handle
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return True

    def release(self) -> None:
        """Removes the file and frees the lock, where this process holds it."""
        if self._handle is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None

    def sweep(self) -> None:
        """Removes the file of a process that was killed, where it can be removed."""
        with suppress(FileError):  # a finished run may lie where nothing can be written
            if self.path.exists() and self.acquire():
                self.release()

    def _locked(self) -> int | None:
        """The locked file; None where another process holds it."""
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            is_locked = _lock(handle)
            if is_locked is False:
                os.close(handle)
                return None
            if is_locked is None:
                _log.warning(f"{self.path.parent}: no file locks here, so nothing keeps a second run out of it")
            if self.path.exists() and os.path.samestat(os.fstat(handle), self.path.stat()):
                return handle
            os.close(handle)  # the last holder removed the file between our opening and our locking it


def _lock(handle: int) -> bool | None:
    """Locks an open file; False where another process holds it, None where there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True
