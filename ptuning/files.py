"""Files and directories that are whole or not there: written beside and renamed into place.

Knows nothing of what is in them.
"""

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ptuning.errors import DiskFullError, FileError

if sys.platform != "win32":
    import fcntl

_ALMOST_NOTHING = 1 << 20  # bytes free on a disk that counts as full when a write has just failed
_NUM_RANDOM_BYTES = 8  # in the name of what is being written
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to; it becomes `path` when the block ends well, and is removed when it does not.

    The file has the permissions that `open` would give a new one, also where it replaces an older file.

    Raises:
        FileError: When the file cannot be written; whatever `path` held before is still there.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    _require_replaceable(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        beside, held = _begun(path, lambda new: os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)))
    try:
        with disk_errors(path):
            mode = stat.S_IMODE(beside.stat().st_mode)
            yield beside
            _sync(beside)
            beside.chmod(mode)  # safetensors makes a file of its own, for its owner alone
            os.replace(beside, path)
            _sync(path.parent)
    finally:
        _let_go(held)
        beside.unlink(missing_ok=True)


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        FileError: For anything else, such as a pipe, a device or a directory, and for a file that is larger than
            `most_bytes` or may not be read.
    """
    try:
        flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe without a writer would wait
        handle = os.open(path, os.O_RDONLY | flags)
        try:
            known = os.fstat(handle)
            if not stat.S_ISREG(known.st_mode):
                raise FileError(f"{path} is no regular file", "a file", "Check the path")
            with os.fdopen(handle, "rb", closefd=False) as file:
                content = b"" if known.st_size > most_bytes else file.read(known.st_size + 1)
                if len(content) > known.st_size:  # it grows, or is one of the system's own, which tell no size
                    content += file.read(most_bytes)
            size = max(known.st_size, len(content))
            if size > most_bytes:
                received = f"{path} has {size:,} bytes"
                raise FileError(received, f"at most {most_bytes:,}", "Check that it is the file that you mean")
            return content
        finally:
            os.close(handle)
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror})", "a file", "Check the path") from error


def require_writable(path: Path) -> None:
    """Raises `FileError` where a file cannot be written, before the work is done that it shall hold."""
    path = Path(os.path.realpath(path))
    _require_replaceable(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Like `whole_file` for a directory of files; an old directory at `path` is replaced.

    On Linux the two change places in one step. Elsewhere, and on file systems that cannot do that, the old one is moved
    aside first: a process that is killed right then leaves it beside, under a hidden name.
    """
    path = Path(os.path.realpath(path))
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        beside, held = _begun(path, lambda new: new.mkdir(mode=0o777))
    try:
        with disk_errors(path):
            mode = stat.S_IMODE(beside.stat().st_mode)
            yield beside
            for file in sorted(beside.rglob("*"), reverse=True):  # a folder after its files
                if not file.is_dir():
                    file.chmod(mode & 0o666)  # safetensors writes for its owner alone
                _sync(file)
            _sync(beside)
            if not path.exists():
                os.replace(beside, path)
            elif not _exchanged(beside, path):
                _swap(beside, path)
            _sync(path.parent)
    finally:
        _let_go(held)
        shutil.rmtree(beside, ignore_errors=True)


def _begun(path: Path, make: Callable[[Path], None]) -> tuple[Path, int | None]:
    """What is written beside a path, and the lock that tells others so; None where there are no locks.

    Args:
        path: What it will replace.
        make: Makes it; the system takes the umask off.
    """
    while True:
        beside = path.with_name(f".{path.name}.{secrets.token_hex(_NUM_RANDOM_BYTES)}")
        make(beside)
        if sys.platform == "win32":
            return beside, None
        with suppress(FileNotFoundError):  # swept by another writer before it was locked: once more
            handle = os.open(beside, os.O_RDONLY)
            if _is_locked(handle) and beside.exists():
                return beside, handle
            os.close(handle)


def _is_locked(handle: int) -> bool:
    """Locks an open file or directory; False where another process is sweeping it, True where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _let_go(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _require_replaceable(path: Path) -> None:
    """Raises `FileError` for what is there and is no regular file, or must not be written."""
    with disk_errors(path):
        if not path.exists() or path.is_dir():  # to write to a directory fails by itself
            return
        if not path.is_file():
            raise FileError(f"{path} is no regular file", "a file, or a new name", "Choose another")
        if not path.stat().st_mode & 0o222:
            raise FileError(f"{path} is read-only", "a file that may be written", "Choose another")


def _sync(path: Path) -> None:
    """Waits until a file or a directory is on the disk; of a directory, where the file system can tell."""
    if path.is_dir():
        if sys.platform != "win32":
            with suppress(OSError):
                _sync_open(os.open(path, os.O_RDONLY))
        return
    _sync_open(os.open(path, os.O_RDWR))


def _sync_open(handle: int) -> None:
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(path: Path) -> None:
    """Removes what killed processes left of earlier writes of the same path."""
    if sys.platform == "win32":
        return
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{{2 * _NUM_RANDOM_BYTES}}}")
    left = list[Path]()
    with suppress(OSError):  # a directory that may be written to and not listed
        left += [Path(entry) for entry in os.scandir(path.parent) if name.fullmatch(entry.name)]
    for each in left:
        with suppress(OSError):  # another process holds or has removed it
            handle = os.open(each, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(each) if each.is_dir() else each.unlink()
            finally:
                os.close(handle)


def _exchanged(one: Path, other: Path) -> bool:
    """Lets two paths change places in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _swap(new: Path, path: Path) -> None:
    """Puts `new` in the place of `path`, or leaves `path` as it was."""
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        os.replace(path, old / "old")
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(old / "old", path)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk into `DiskFullError`, and a place that cannot be written into `FileError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise _disk_full(path) from error
        kinds = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
        if isinstance(error, kinds) or error.errno in (errno.EROFS, errno.ENAMETOOLONG, errno.ENOENT):
            raise FileError(
                f"{path} cannot be written ({error.strerror})", "a place to write to", "Choose another"
            ) from error
        raise
    except (RuntimeError, SafetensorError) as error:  # torch and safetensors report a failed write so
        free = shutil.disk_usage(path.parent if path.parent.exists() else ".").free
        if "No space left" in str(error) or free < _ALMOST_NOTHING:
            raise _disk_full(path) from error
        raise


def _disk_full(path: Path) -> DiskFullError:
    return DiskFullError(
        f"{path} cannot be written: no space is left on the disk", "room for it", "Free some space and try again"
    )
