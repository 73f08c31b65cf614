"""Files that tell when one of their bits has changed: each holds the SHA-256 of itself.

The digest stands between two marks, so that a change of one mark shows too. For the digest itself zeros are counted.
A writer puts `BLANK` where its format has room for a remark. Files of earlier versions have no marks and are taken as
they are. Knows nothing of what is in a file.
"""

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptuning.files import whole_file

_BEFORE, _ZEROS, _AFTER = b"ptuning-sha256:", b"0" * 64, b":ptuning-sha256"
BLANK = (_BEFORE + _ZEROS + _AFTER).decode()
"""What a writer puts into a file; `seal` writes the digest into it."""


@contextmanager
def sealed_file(path: Path) -> Iterator[Path]:
    """As `whole_file`, for a file that holds `BLANK` once."""
    with whole_file(path) as beside:
        yield beside
        seal(beside)


def seal(path: Path) -> None:
    """Writes a file's digest into its blank."""
    content = path.read_bytes()
    assert content.count(BLANK.encode()) == 1, f"{path} has no room for its digest"
    with path.open("rb+") as file:
        file.seek(content.index(BLANK.encode()) + len(_BEFORE))
        file.write(hashlib.sha256(content).hexdigest().encode())


def seal_zip(path: Path) -> None:
    """Seals a zip archive, such as those of `torch.save`, in its comment."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = BLANK.encode()
    seal(path)


def has_changed(content: bytes) -> bool:
    """Whether a file is not what it was when it was sealed; False for one that never was.

    Line ends may be those of another system, as git and editors write them.
    """
    return _differs(content) and _differs(content.replace(b"\r\n", b"\n"))


def _differs(content: bytes) -> bool:
    before, after = content.rfind(_BEFORE), content.rfind(_AFTER)
    if before < 0 and after < 0:
        return False
    if before < 0 or after < 0:
        return True
    start = before + len(_BEFORE)
    digest = content[start:after]
    return hashlib.sha256(content[:start] + _ZEROS + content[after:]).hexdigest().encode() != digest
