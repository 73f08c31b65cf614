"""The directory that a client of a vLLM server needs: prompts, their tasks, a tokenizer and the base's embedding rows.

Reads no weights of the base but its embeddings. Knows nothing of how the directory was made, nor of servers.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ptuning.data import Coder, Task
from ptuning.errors import ConfigError, FileError, PromptError
from ptuning.export.vllm.embeddings import Embeddings
from ptuning.export.vllm.probes import Probe
from ptuning.files import read_regular
from ptuning.model import Fingerprint, quietly
from ptuning.typed import read_json

VLLM_FILE = "ptuning_vllm.json"
FORMAT_VERSION = 1
_MOST_BYTES = 1 << 26


@dataclass(frozen=True)
class _Base:
    name: str
    revision: str | None
    fingerprint: Fingerprint


@dataclass(frozen=True)
class _Described:
    format_version: int
    base: _Base
    max_positions: int | None
    end_ids: list[int]
    probes: list[Probe]
    prompts: dict[str, Task]
    files: list[str]


class ExportedPrompts:
    """The prompts of a directory that `ptuning export --to vllm` wrote.

    Args:
        base_name: The base model's name.
        tokenizer: The base's tokenizer.
        tasks: Name of a prompt -> how rows become text.
        embeddings: The embedding rows.
        probes: What the base thinks comes after a few texts.
        end_ids: The ids that end an answer.
        max_positions: The positions that the base has; None: no limit.
        digest: Identifies the directory's description.
    """

    def __init__(
        self,
        base_name: str,
        tokenizer: Any,
        tasks: Mapping[str, Task],
        embeddings: Embeddings,
        probes: list[Probe],
        end_ids: list[int],
        max_positions: int | None,
        digest: str,
    ) -> None:
        self.base_name, self.tokenizer, self.tasks, self.embeddings = base_name, tokenizer, dict(tasks), embeddings
        self.probes, self.end_ids, self.max_positions, self.digest = probes, end_ids, max_positions, digest

    @classmethod
    def load(cls, directory: str | Path, trust_remote_code: bool = False) -> "ExportedPrompts":
        """Reads a directory.

        Raises:
            PromptError: If it is no such directory, or a broken one.
        """
        import transformers

        path = Path(directory)
        described, digest = read_description(path)
        try:
            with quietly():
                tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        except Exception as error:  # transformers and tokenizers each raise their own errors
            raise _broken(path, str(error)) from error
        try:
            tasks = {name: Task(**each) for name, each in described["prompts"].items()}
        except (TypeError, ConfigError) as error:
            raise _broken(path, str(error)) from error
        return cls(
            base_name=described["base"]["name"],
            tokenizer=tokenizer,
            tasks=tasks,
            embeddings=Embeddings.load(path, list(tasks)),
            probes=[Probe(**each) for each in described["probes"]],
            end_ids=described["end_ids"],
            max_positions=described["max_positions"],
            digest=digest,
        )

    @cached_property
    def coders(self) -> dict[str, Coder]:
        """Name of a prompt -> what turns its rows into ids."""
        return {name: Coder(task, self.tokenizer, self.max_positions) for name, task in self.tasks.items()}

    def named(self, name: str | None) -> str:
        """The name itself, or that of the only prompt; raises `PromptError` for an unknown one."""
        if name is None and len(self.tasks) == 1:
            return next(iter(self.tasks))
        if name not in self.tasks:
            raise PromptError(f"prompt {name!r}", f"one of {', '.join(self.tasks)}", "Name one of them")
        return name


def read_description(directory: Path) -> tuple[dict[str, Any], str]:
    """What a directory says of itself, and the digest of that; raises `PromptError` where there is no such thing."""
    if not (directory / VLLM_FILE).is_file():
        told = "a directory that `ptuning export --to vllm` wrote"
        raise PromptError(f"{directory} has no {VLLM_FILE}", told, "Export the prompt, or check the path")
    try:
        content = read_regular(directory / VLLM_FILE, _MOST_BYTES)
        described = read_json(content, _Described)
    except (ValueError, FileError, ConfigError) as error:
        raise _broken(directory, str(error)) from error
    if described["format_version"] != FORMAT_VERSION:
        told = f"{directory / VLLM_FILE} has format version {described['format_version']}"
        raise PromptError(told, str(FORMAT_VERSION), "Upgrade ptuning, or export the prompts again")
    return described, hashlib.sha256(content).hexdigest()


def _broken(directory: Path, reason: str) -> PromptError:
    return PromptError(
        f"{directory} is a broken export ({reason})", "a complete one", "Copy it, or export its prompts, again"
    )
