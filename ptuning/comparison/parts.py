"""One way, fitted once, as a directory: finished when result.json is there; and the directory of a whole comparison.

Knows nothing of how ways are fitted.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptuning.comparison.schema import MadeWith, PartFile
from ptuning.errors import FileError, TrainingError
from ptuning.files import disk_errors, read_regular
from ptuning.sealed import BLANK, has_changed, sealed_file
from ptuning.training import DirectoryLock
from ptuning.typed import read_json

_MOST_BYTES = 1 << 26


@dataclass(frozen=True)
class Part:
    """One way with one seed, on all training rows or some."""

    way: str
    """The way's name."""
    seed: int
    """The seed."""
    num_train: int | None
    """Training rows; None: all."""

    def path(self, directory: Path) -> Path:
        """Its directory in that of the comparison."""
        return directory / self.way / f"{self.num_train or 'all'}-rows" / f"seed-{self.seed}"

    @property
    def which(self) -> str:
        """Which of its way's parts it is."""
        return f"{'' if self.num_train is None else f'{self.num_train} rows, '}seed {self.seed}"

    def __str__(self) -> str:
        return f"{self.way}, {self.which}"


class PartDirectory:
    """The files of a part: `way/` is what is shipped, `result.json` what was measured.

    Args:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.way, self.work, self._result = path, path / "way", path / "work", path / "result.json"

    @property
    def is_finished(self) -> bool:
        """Whether the part is done; result.json is written last."""
        return self._result.exists()

    def begin(self) -> None:
        """Makes room for a part; what an unfinished one has trained is kept in `work`."""
        with disk_errors(self.path):
            shutil.rmtree(self.way, ignore_errors=True)
            for each in (self.way, self.work):
                each.mkdir(parents=True, exist_ok=True)

    def finish(self, result: PartFile) -> None:
        """Writes the result, and removes what was only needed on the way."""
        write_sealed(self._result, dataclasses.asdict(result))
        shutil.rmtree(self.work, ignore_errors=True)

    def read(self) -> PartFile:
        """The result.

        Raises:
            TrainingError: For a file that is broken or has changed.
        """
        found = read_sealed(self._result, PartFile, f"Remove {self.path}, and it is made again")
        return PartFile(
            **{field.name: found[field.name] for field in dataclasses.fields(PartFile) if field.name in found}
        )


class ComparisonDirectory:
    """The directory of a comparison: what it was made with, a lock, and a directory a part.

    Args:
        path: The config's `output_dir`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.lock = DirectoryLock(self.path / "compare.lock")
        self._made_with = self.path / "made_with.json"

    def require_usable(self) -> None:
        """Raises `TrainingError` for a directory that holds something else."""
        with disk_errors(self.path):
            if not self.path.exists():
                return
            if not self.path.is_dir():
                raise TrainingError(f"output_dir {self.path} is a file", "a directory", "Choose another")
            held = {file.name for file in self.path.iterdir() if not file.name.startswith(".")}
        if held - {self.lock.path.name} and not self._made_with.exists():
            raise TrainingError(
                f"output_dir {self.path} holds something else than a comparison",
                "a new or empty directory, or that of this comparison",
                "Choose another train.output_dir",
            )

    def acquire(self) -> None:
        """Takes the lock; raises `TrainingError` where another process holds it."""
        if not self.lock.acquire():
            raise TrainingError(
                f"output_dir {self.path} is in use by {self.lock.holder}",
                "a directory in which no other run is at work",
                "Wait until that one ends, or choose another train.output_dir",
            )

    def begin(self, made_with: MadeWith) -> None:
        """Notes what the parts follow from; raises `TrainingError` where earlier parts follow from something else."""
        now = dataclasses.asdict(made_with)
        if not self._made_with.exists():
            write_sealed(self._made_with, now)
            return
        before = read_sealed(self._made_with, MadeWith, "Choose another train.output_dir")
        changed = _changed(before["settings"], now["settings"])
        changed += [f"{split} rows" for split in _changed(before["rows"], now["rows"])]
        changed += ["the base's weights"] if before["weights"] != now["weights"] else []
        if changed:
            raise TrainingError(
                f"{self.path} holds a comparison with other {', '.join(changed)}",
                "the same as it was begun with",
                "Set them back, or choose another train.output_dir",
            )

    def part(self, part: Part) -> PartDirectory:
        """A part's directory."""
        return PartDirectory(part.path(self.path))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [key for key in {**before, **now} if before.get(key) != now.get(key)]


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON with a digest of itself."""
    with sealed_file(path) as beside:
        beside.write_text(json.dumps({**content, "seal": BLANK}, indent=1) + "\n", encoding="utf-8", newline="\n")


def read_sealed(path: Path, kind: type, remedy: str) -> dict[str, Any]:
    """Reads what `write_sealed` wrote; raises `TrainingError` where it is broken or has changed."""
    try:
        content = read_regular(path, _MOST_BYTES)
    except FileError as error:
        raise TrainingError(error.received, error.expected, remedy) from error
    if has_changed(content):
        raise TrainingError(f"{path} has changed since it was written", "what the comparison wrote", remedy)
    try:
        return read_json(content, kind)
    except ValueError as error:
        raise TrainingError(f"{path} is broken ({error})", "what the comparison wrote", remedy) from error
