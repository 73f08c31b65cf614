"""The names of prompts in another program's files.

Knows nothing of models.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ptuning.errors import PromptError
from ptuning.model import is_hub_name
from ptuning.prompts import SoftPrompt, prompt_directory

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def load_prompts(directories: Sequence[str | Path], names: Sequence[str] | None = None) -> dict[str, SoftPrompt]:
    """Loads saved prompts by name.

    Args:
        directories: The prompts' directories, those of their runs, or names on the hub.
        names: A name for each; None: its directory's, or that of the run that it lies in.

    Raises:
        PromptError: For a prompt that cannot be read, and for names that clash.
    """
    names = [_own_name(each) for each in directories] if names is None else names
    if len(names) != len(directories):
        raise PromptError(f"{len(names)} names for {len(directories)} prompts", "one for each", "Correct --name")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise PromptError(f"two prompts named {twice!r}", "a name for each", "Give --name once for each prompt")
    return {name: SoftPrompt.from_pretrained(each) for name, each in zip(names, directories, strict=True)}


def require_names(prompts: Mapping[str, SoftPrompt]) -> None:
    """Raises `PromptError` where there is no prompt, and for a name that cannot stand in a token."""
    if not prompts:
        raise PromptError("no prompts", "one or more", "Name them")
    for name in prompts:
        if not _NAME.fullmatch(name):
            received, expected = f"a prompt named {name!r}", "letters, digits, '_', '-' and '.'"
            raise PromptError(received, expected, "Give it another name")


def _own_name(place: str | Path) -> str:
    """What a prompt is called: its directory, the run that it lies in, or its repository on the hub."""
    if not Path(place).exists() and is_hub_name(str(place)):
        return str(place).partition("@")[0].rpartition("/")[2]
    own = prompt_directory(Path(place).resolve())
    is_in_run = own.name == "prompt" and (own.parent / "config.yaml").exists()
    return own.parent.name if is_in_run else own.name
