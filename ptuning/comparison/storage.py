"""The files that a way is brought back from: its own JSON, tables of texts, and tensors.

Everything is read as data: typed JSON and safetensors, each of a bounded size. Knows nothing of single ways.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from ptuning.comparison.protocol import Writing
from ptuning.comparison.schema import OwnFile, TextsFile
from ptuning.data import Task
from ptuning.errors import ConfigError, FileError, PromptError
from ptuning.files import read_regular, whole_file
from ptuning.model import Backbone
from ptuning.typed import read_json

OWN_FILE = "way.json"
_MOST_BYTES = 1 << 30  # of JSON
_MOST_ITEM_BYTES = 8
_MOST_HEADER_BYTES = 1 << 24  # of tensors, beside the numbers


@dataclass(frozen=True)
class Saved:
    """A way's directory, read back."""

    directory: Path
    """Where its files lie."""
    own: Mapping[str, Any]
    """What `way.json` says."""
    task: Task
    """What rows must hold, and the labels."""
    backbone: Backbone | None
    """The base; None for a way that needs none."""

    @property
    def base(self) -> Backbone:
        """The base of a way that needs one."""
        assert self.backbone is not None
        return self.backbone

    @property
    def num_labels(self) -> int:
        """C."""
        return len(self.task.verbalizer or ())

    @property
    def writing(self) -> Writing | None:
        """When an answer that it writes ends; None for labels. Raises `PromptError` where that is broken."""
        ends = self.own.get("writing")
        if (ends is None) != self.task.is_classification:
            raise self.broken("it has labels, and ends for written answers" if ends else "it has no labels and no ends")
        if ends is None:
            return None
        if ends["max_new_tokens"] < 1 or "" in ends["stop_strings"]:
            raise self.broken(f"writing: {ends}")
        return Writing(ends["max_new_tokens"], tuple(ends["stop_strings"]))

    def told(self, name: str) -> Any:
        """A value of `way.json`; raises `PromptError` where it is missing."""
        if self.own.get(name) is None:
            raise self.broken(f"it has no {name}")
        return self.own[name]

    def broken(self, reason: str) -> PromptError:
        """The error for a `way.json` that cannot be used."""
        return _broken(self.directory / OWN_FILE, reason)

    def texts(self, name: str) -> list[dict[str, str]]:
        """The rows that `write_texts` wrote; raises `PromptError` where they are broken."""
        file = self.directory / name
        try:
            rows: list[dict[str, str]] = read_json(read_regular(file, _MOST_BYTES), TextsFile)["rows"]
        except (FileError, ValueError) as error:
            raise _broken(file, str(error)) from error
        return rows

    def tensors(self, name: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """The tensors of a file.

        Args:
            name: The file's name.
            shapes: The tensors that it must hold and no others, with their shapes.

        Raises:
            PromptError: For a file that is missing or broken, or holds other tensors.
        """
        file = self.directory / name
        most = sum(_MOST_ITEM_BYTES * math.prod(shape) for shape in shapes.values()) + _MOST_HEADER_BYTES
        try:
            found = load(read_regular(file, most))
        except (FileError, SafetensorError) as error:
            raise _broken(file, str(error)) from error
        if found.keys() != shapes.keys():
            raise _broken(file, f"it holds {', '.join(sorted(found))[:200]}")
        for key, shape in shapes.items():
            if list(found[key].shape) != list(shape):
                raise _broken(file, f"{key} has the shape {list(found[key].shape)} and not {list(shape)}")
            if not found[key].is_floating_point() or not found[key].isfinite().all():
                raise _broken(file, f"{key} holds what is no finite number")
        return found


def write_own(directory: Path, content: Mapping[str, Any]) -> None:
    """Writes what a way is read back from."""
    with whole_file(directory / OWN_FILE) as beside:
        beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_texts(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Writes rows of text."""
    with whole_file(file) as beside:
        beside.write_text(json.dumps({"rows": list(map(dict, rows))}, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as they are."""
    with whole_file(file) as beside:
        save_file({name: each.detach().cpu().contiguous() for name, each in tensors.items()}, beside)


def base_noted(directory: Path, backbone: Backbone, writing: Writing | None = None) -> None:
    """Adds to what a way is read back from which base it belongs to, and when an answer that it writes ends."""
    dtype, known = str(backbone.dtype).removeprefix("torch."), vars(backbone.fingerprint)
    content = json.loads((directory / OWN_FILE).read_text(encoding="utf-8"))
    ends = {} if writing is None else {"writing": vars(writing)}
    write_own(directory, {**content, "base": backbone.name, "dtype": dtype, "fingerprint": known, **ends})


def read_own(path: Path) -> tuple[dict[str, Any], Task]:
    """What `way.json` says, and the task in it; raises `PromptError` where it is missing or broken."""
    try:
        own = read_json(read_regular(path / OWN_FILE, _MOST_BYTES), OwnFile)
        return own, Task(**own["task"])
    except FileError as error:
        raise PromptError(f"{path} holds no way ({error.received})", "a part of a comparison", "Check it") from error
    except (ValueError, TypeError, ConfigError) as error:
        raise _broken(path / OWN_FILE, str(error)) from error


def _broken(file: Path, reason: str) -> PromptError:
    return PromptError(f"{file} is broken ({reason})", "what compare wrote", "Compare again")
