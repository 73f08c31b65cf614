"""Files and directories: whole or not there, with the permissions that the umask gives, and clear about a full disk."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from ptuning.errors import DiskFullError, FileError
from ptuning.files import whole_directory, whole_file
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
