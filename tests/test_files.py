"""Files and directories: whole or not there, with the permissions that the umask gives, and clear about a full disk."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from ptuning import files
from ptuning.errors import DiskFullError, FileError
from ptuning.files import require_writable, whole_directory, whole_file
from ptuning.prompts.soft_prompt import SoftPrompt

WRITER = """
import os, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from ptuning.files import whole_file
from ptuning.prompts.soft_prompt import SoftPrompt
from ptuning.training.run_directory import RunDirectory
os.umask(int(sys.argv[1], 8))
directory = Path(sys.argv[2])
directory.mkdir(exist_ok=True)
with whole_file(directory / "text.txt") as beside:
    beside.write_text("text")
with whole_file(directory / "tensor.safetensors") as beside:
    save_file({"a": torch.zeros(1)}, beside)
prompt = SoftPrompt(torch.zeros(2, 4))
prompt.save(directory / "prompt")
run = RunDirectory(directory / "run")
run.save_checkpoint("last", {})
run.save_snapshot(0, torch.zeros(2, 4))
run.append_log({"step": 1})
run.write_metrics({})
"""


@pytest.mark.parametrize("umask", ["077", "022", "027"])
def test_permissions_are_those_that_the_umask_gives(tmp_path: Path, umask: str) -> None:
    directory = tmp_path / "new"
    for _ in range(2):  # new ones, then in place of older ones
        subprocess.run([sys.executable, "-c", WRITER, umask, str(directory)], check=True)
        modes = {path.relative_to(directory): path.stat().st_mode & 0o7777 for path in directory.rglob("*")}
        directories = {mode for path, mode in modes.items() if (directory / path).is_dir()}
        files = {mode for path, mode in modes.items() if (directory / path).is_file()}
        assert len(modes) > 12
        assert directories == {0o777 & ~int(umask, 8)}
        assert files == {0o666 & ~int(umask, 8)}
        (directory / "text.txt").chmod(0o600)
        (directory / "prompt" / "ptuning.json").chmod(0o600)


def test_permissions_do_not_change_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(mask: int) -> int:
        raise AssertionError("other threads write files meanwhile")

    monkeypatch.setattr(os, "umask", changed)
    SoftPrompt(torch.zeros(2, 4)).save(tmp_path / "prompt")
    with whole_file(tmp_path / "text.txt") as beside:
        beside.write_text("text")


def write_half(path: Path, error: Exception) -> None:
    with whole_file(path) as beside:
        beside.write_text("half")
        raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_told_without_a_word_on_runs(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "report.html").write_text("older")
    with pytest.raises(DiskFullError, match=r"report.html cannot be written: no space .* expected room for it") as told:
        write_half(tmp_path / "report.html", error)
    assert "resume" not in str(told.value)
    assert "checkpoint" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "older"


def test_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for whole in (whole_file, whole_directory):
        with (
            pytest.raises(FileError, match=r"file/new cannot be written \(.*; expected a place to write to"),
            whole(tmp_path / "file" / "new"),
        ):
            raise AssertionError("there is nothing to write to")


def test_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a bug"), whole_directory(tmp_path / "directory"):
        raise KeyError("a bug")
    assert list(tmp_path.iterdir()) == []


KILLED_EVERYWHERE = """
import itertools, os, signal, sys
from pathlib import Path
import torch
from ptuning.files import whole_file
from ptuning.prompts.soft_prompt import SoftPrompt

place, counted = Path(sys.argv[1]), {"open", "ctypes.dlsym", "shutil.rmtree", "fcntl.flock", "os.scandir"}
old, new = (SoftPrompt(torch.full((2, 4), value)) for value in (0.0, 1.0))
left = itertools.count(-1)  # counts nothing before a child sets it
def hook(event, arguments):
    global left
    if event in counted or (event.startswith("os.") and event != "os.fork"):
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
def save(prompt):
    prompt.save(place / "prompt")
    with whole_file(place / "text") as beside:
        beside.write_text(str(float(prompt.embeddings_PH[0, 0])))
save(old)
num_old = num_new = num_left = 0
for number in itertools.count():
    if os.fork() == 0:
        sys.addaudithook(hook)
        left = itertools.count(-number, 1)
        save(new)
        os._exit(0)
    status = os.wait()[1]
    found = float(SoftPrompt.load(place / "prompt").embeddings_PH[0, 0])
    assert (place / "text").read_text() in ("0.0", "1.0"), number
    num_old, num_new = num_old + (found == 0), num_new + (found == 1)
    num_left += len(list(place.iterdir())) > 2
    save(old)
    assert sorted(path.name for path in place.iterdir()) == ["prompt", "text"], (number, list(place.iterdir()))
    if status == 0:
        break
print(number, num_old, num_new, num_left)
"""


def test_what_is_written_is_whole_wherever_the_writer_is_killed(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", KILLED_EVERYWHERE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    num_kills, num_old, num_new, num_left = map(int, run.stdout.split())
    assert num_kills > 25
    assert min(num_old, num_new, num_left) > 3


def test_links_are_written_through_and_devices_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    with whole_file(tmp_path / "link") as beside:
        beside.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe_link").symlink_to("pipe")
    (tmp_path / "read_only").touch(0o444)
    for path, told in {
        tmp_path / "pipe": "no regular file",
        tmp_path / "pipe_link": "no regular file",
        Path("/dev/null"): "no regular file",
        tmp_path / "read_only": "is read-only",
    }.items():
        with pytest.raises(FileError, match=told):
            require_writable(path)
        with pytest.raises(FileError, match=told), whole_file(path):
            raise AssertionError("it must not be written")


def test_what_another_process_is_writing_is_not_swept(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file") as first:
        first.write_text("first")
        with whole_file(tmp_path / "file") as second:
            second.write_text("second")
        assert first.exists()
        assert (tmp_path / "file").read_text() == "second"
    assert (tmp_path / "file").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_directories_are_replaced_where_they_cannot_change_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    for value in (0.0, 1.0):
        SoftPrompt(torch.full((2, 4), value)).save(tmp_path / "prompt")
        assert SoftPrompt.load(tmp_path / "prompt").embeddings_PH[0, 0] == value
    assert [path.name for path in tmp_path.iterdir()] == ["prompt"]


def test_a_directory_may_hold_folders(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "new") as beside:
        (beside / "in" / "it").mkdir(parents=True)
        (beside / "in" / "it" / "a").write_text("a")
    assert (tmp_path / "new" / "in" / "it").stat().st_mode & 0o111
    assert (tmp_path / "new" / "in" / "it" / "a").read_text() == "a"


def test_a_directory_behind_a_link_is_written_through(tmp_path: Path) -> None:
    SoftPrompt(torch.zeros(2, 4)).save(tmp_path / "disk" / "prompt")
    (tmp_path / "prompt").symlink_to(tmp_path / "disk" / "prompt")
    SoftPrompt(torch.ones(2, 4)).save(tmp_path / "prompt")
    assert (tmp_path / "prompt").is_symlink()
    assert SoftPrompt.load(tmp_path / "disk" / "prompt").embeddings_PH[0, 0] == 1
    assert sorted(path.name for path in tmp_path.rglob(".*")) == []


def test_threads_may_write_the_same_file(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(100):
            with whole_file(tmp_path / "file") as beside:
                beside.write_text(str(number) * 1000)

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(write, number) for number in range(4)]:
            each.result()
    assert len(set((tmp_path / "file").read_text())) == 1
    assert len(list(tmp_path.iterdir())) == 1
