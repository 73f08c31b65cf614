"""What exported directories share: the base that they name, and the rule that an export replaces nothing but an export.

Knows nothing of what is exported.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptuning.errors import FileError
from ptuning.model import Fingerprint
from ptuning.prompts import SoftPrompt


def require_replaceable(path: Path, file: str, what: str, files_of: Callable[[Path], Sequence[str]]) -> None:
    """Raises `FileError` if the path holds anything but an export of this kind.

    Args:
        path: The directory to write.
        file: The file by which such an export is known.
        what: The kind of export.
        files_of: Reads the names of an export's files.
    """
    if path.exists() and not path.is_dir():
        raise FileError(f"{path} is a file", "a new directory", "Choose another")
    names = {each.name for each in path.iterdir()} if path.is_dir() else set()
    own = set(files_of(path)) if file in names else set()
    if names - own:
        raise FileError(
            f"{path} holds {min(names - own)}, which is not part of {what}",
            f"a new or empty directory, or one that holds {what}",
            "Choose another directory",
        )


def revision_of(base: str, prompts: Mapping[str, SoftPrompt]) -> str | None:
    """The revision of a hub model that the first prompt tuned on it records."""
    return next((each.revision for each in prompts.values() if each.base_name == base), None)


def describe_base(name: str, prompts: Mapping[str, SoftPrompt], fingerprint: Fingerprint) -> dict[str, Any]:
    """The base as plain data."""
    return {"name": name, "revision": revision_of(name, prompts), "fingerprint": dataclasses.asdict(fingerprint)}


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file for people and programs."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
