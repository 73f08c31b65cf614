"""Files and directories that are whole or not there: written beside and renamed into place.

Knows nothing of what is in them.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ptuning.errors import PTuningError, TrainingError

_ALMOST_NOTHING = 1 << 20  # bytes free on a disk that counts as full when a write has just failed
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to; it becomes `path` when the block ends well, and is removed when it does not.

    Raises:
        TrainingError: When the disk is full; whatever `path` held before is still there.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        with disk_errors(path):
            yield beside
            with beside.open("rb+") as written:
                os.fsync(written.fileno())
            beside.chmod(0o644)
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Raises `TrainingError` where a file cannot be written, before the work is done that it shall hold."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Like `whole_file` for a directory; an old directory at `path` is replaced.

    A process killed between the two renames of a replacement leaves the old directory beside, under a hidden name.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with disk_errors(path):
            yield beside
            beside.chmod(0o755)
            for file in beside.iterdir():
                file.chmod(0o644)  # safetensors writes for its owner alone
            if path.exists():
                _swap(beside, path)
            else:
                os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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
    """Turns a full disk, or a place that cannot be written, into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise no_space(path, "no space is left") from error
        kinds = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
        if isinstance(error, kinds) or error.errno in (errno.EROFS, errno.ENAMETOOLONG, errno.ENOENT):
            raise TrainingError(
                f"{path} cannot be written ({error.strerror})", "a place to write to", "Choose another"
            ) from error
        raise
    except (RuntimeError, SafetensorError) as error:  # torch and safetensors report a failed write so
        free = shutil.disk_usage(path.parent if path.parent.exists() else ".").free
        if "No space left" in str(error) or free < _ALMOST_NOTHING:
            raise no_space(path, "no space is left") from error
        raise


def no_space(path: Path, reason: str) -> PTuningError:
    """The error for a full disk."""
    return TrainingError(
        f"{path} cannot be written: {reason} on the disk",
        "room for the checkpoint",
        "Free some space and go on with --resume; what was saved before is intact",
    )
