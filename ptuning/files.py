"""Files and directories that are whole or not there: written beside and renamed into place.

Knows nothing of what is in them.
"""

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ptuning.errors import DiskFullError, FileError

_ALMOST_NOTHING = 1 << 20  # bytes free on a disk that counts as full when a write has just failed
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to; it becomes `path` when the block ends well, and is removed when it does not.

    The file has the permissions that `open` would give a new one, also where it replaces an older file.

    Raises:
        FileError: When the file cannot be written; whatever `path` held before is still there.
    """
    beside = _beside(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)  # the system takes the umask off
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        os.close(handle)
        with disk_errors(path):
            yield beside
            with beside.open("rb+") as written:
                os.fsync(written.fileno())
            beside.chmod(mode)  # safetensors makes a file of its own, for its owner alone
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        FileError: For anything else, such as a pipe, a device or a directory, and for a file that is larger than
            `most_bytes` or may not be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer would wait
        try:
            known = os.fstat(handle)
            if not stat.S_ISREG(known.st_mode):
                raise FileError(f"{path} is no regular file", "a file", "Check the path")
            if known.st_size > most_bytes:
                received = f"{path} has {known.st_size:,} bytes"
                raise FileError(received, f"at most {most_bytes:,}", "Check that it is the file that you mean")
            with os.fdopen(handle, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(handle)
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror})", "a file", "Check the path") from error


def require_writable(path: Path) -> None:
    """Raises `FileError` where a file cannot be written, before the work is done that it shall hold."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Like `whole_file` for a directory of files; an old directory at `path` is replaced.

    A process killed between the two renames of a replacement leaves the old directory beside, under a hidden name.
    """
    beside = _beside(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir(mode=0o777)  # the system takes the umask off
    try:
        with disk_errors(path):
            mode = stat.S_IMODE(beside.stat().st_mode)
            yield beside
            for file in beside.iterdir():
                file.chmod(mode & 0o666)  # safetensors writes for its owner alone
            if path.exists():
                _swap(beside, path)
            else:
                os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A new hidden path in the same directory."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


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
