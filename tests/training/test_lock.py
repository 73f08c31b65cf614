"""The lock of a directory: one holder at a time, free as soon as its process has ended."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ptuning.training.lock import DirectoryLock

HOLDER = """
import sys, time
from pathlib import Path
from ptuning.training.lock import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
print(lock.acquire(), flush=True)
time.sleep(600)
"""


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = (DirectoryLock(tmp_path / "new" / "run.lock") for _ in range(2))
    assert not first.is_held_elsewhere
    assert not (tmp_path / "new").exists()
    assert first.acquire()
    assert second.is_held_elsewhere
    assert not second.acquire()
    assert second.holder.startswith(f"process {os.getpid()} on ")
    second.release()
    assert first.path.exists()
    first.release()
    first.release()
    assert not first.path.exists()
    assert second.holder == "another process"
    assert second.acquire()
    second.release()


def test_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "run.lock")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert lock.is_held_elsewhere
        assert not lock.acquire()
        assert lock.holder.startswith(f"process {holder.pid} on ")
    finally:
        holder.kill()
        holder.communicate()
    assert lock.path.exists()
    assert not lock.is_held_elsewhere
    assert lock.acquire()
    assert lock.holder.startswith(f"process {os.getpid()} on ")
    lock.release()


def test_file_that_its_holder_removes_meanwhile_is_not_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (DirectoryLock(tmp_path / "run.lock") for _ in range(3))
    assert first.acquire()
    flock = fcntl.flock

    def released_first(handle: int, operation: int) -> None:
        first.release()
        flock(handle, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", released_first)
        assert second.acquire()
    assert not third.acquire()
    second.release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def unsupported(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    lock = DirectoryLock(tmp_path / "run.lock")
    assert lock.acquire()
    assert f"{tmp_path}: no file locks here, so nothing keeps a second run out of it" in caplog.text
    assert not DirectoryLock(lock.path).is_held_elsewhere
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_lock_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(handle: int, operation: int) -> None:
        raise OSError(errno.EIO, "the network drive is gone")

    monkeypatch.setattr(fcntl, "flock", failing)
    with pytest.raises(OSError, match="the network drive is gone"):
        DirectoryLock(tmp_path / "run.lock").acquire()


def test_a_killed_holders_file_is_swept_and_a_live_ones_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, holder = (DirectoryLock(tmp_path / "run.lock") for _ in range(2))
    lock.sweep()
    assert not lock.path.exists()
    lock.path.write_text("process 1 on a machine")
    lock.sweep()
    assert not lock.path.exists()
    assert holder.acquire()
    lock.sweep()
    assert lock.path.exists()
    holder.release()
    lock.path.touch()

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    lock.sweep()
    assert lock.path.exists()
