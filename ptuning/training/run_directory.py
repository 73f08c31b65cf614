"""A run's directory: config.yaml, checkpoints/, metrics.jsonl, metrics.json, prompt/, and run.lock while it trains.

Knows nothing of models or of what a training state means.
"""

import dataclasses
import io
import json
import logging
import pickle
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from ptuning.config import RunConfig, defaults
from ptuning.errors import FileError, TrainingError
from ptuning.files import disk_errors, read_regular, whole_file
from ptuning.sealed import BLANK, has_changed, seal, seal_zip, sealed_file
from ptuning.training.lock import DirectoryLock
from ptuning.training.schema import LogLine, Metrics
from ptuning.typed import read_json

_log = logging.getLogger(__name__)

LAST, BEST = "last", "best"
STATE = ("encoder", "optimizer", "schedule", "progress", "random", "made_with")  # what a checkpoint holds
_SNAPSHOT = ".safetensors"
_MOST_TENSOR_BYTES = 1 << 35
_MOST_TEXT_BYTES = 1 << 26
_MOST_LOG_BYTES = 1 << 32
_LEFTOVERS = tuple(  # of writes that were killed
    f".{name}"
    for name in ("config.yaml.", "metrics.json", "curves.png.", "predictions.jsonl.", "prompt.", "last.pt.", "best.pt.")
)
_DECIDE_NO_STEP = {
    *("train.output_dir", "train.report_to", "model.revision", "data.test"),
    *("train.max_batch_tokens", "train.gradient_checkpointing", "train.per_device_eval_batch_size"),  # up to rounding
}
_SOURCES = {"model.name_or_path", "data.train", "data.validation", "prompt.init_prompt"}  # checkpoints know the content
_EARLIER_DEFAULTS: dict[str, Any] = {
    "data.validation_split": 0.0,
    "prompt.encoder": "residual",
    "prompt.init": "vocabulary",
    "train.num_train_epochs": 3.0,
    "train.learning_rate": 1e-3,
    "train.group_by_length": True,
    "train.metric_for_best_model": "loss",
    "train.eval_steps": 100,
    "train.early_stopping_patience": None,
}
"""Setting -> its default in the versions before, or what they did where they did not know it."""


class RunDirectory:
    """Reads and writes a run's files, each whole or not at all.

    Args:
        path: The run's `output_dir`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.prompt, self.config = self.path / "prompt", self.path / "config.yaml"
        self.metrics, self.log = self.path / "metrics.json", self.path / "metrics.jsonl"
        self.curves, self.predictions = self.path / "curves.png", self.path / "predictions.jsonl"
        self.lock = DirectoryLock(self.path / "run.lock")

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended and its prompt and metrics are written; metrics.json is written last."""
        return self.metrics.exists() and self.prompt.exists()

    def require_usable(self, config: RunConfig, resume: bool) -> None:
        """Raises `TrainingError` when the directory holds another run, or this run with settings that make other steps.

        Files and models are not compared by their names: a checkpoint knows their content.
        """
        with disk_errors(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise TrainingError(
                    f"output_dir {self.path} is a file", "a directory", "Choose another train.output_dir"
                )
            if not self.path.exists() or self._holds_no_work():
                return
        if not resume or not self.config.exists():
            what = "already holds a run" if self.config.exists() else "is not empty"
            remedy = "Go on with --resume, or choose another" if self.config.exists() else "Choose another"
            raise TrainingError(
                f"output_dir {self.path} {what}", "a new or empty directory", f"{remedy} train.output_dir"
            )
        changed = {
            name: told
            for name, told in self._changed(config).items()
            if name not in _DECIDE_NO_STEP and not (name in _SOURCES and told.is_other_name)
        }
        if changed:
            raise TrainingError(
                f"--resume of {self.path} with other settings ({', '.join(map(str, changed.values()))})",
                f"the settings in {self.config}",
                _remedy(self.prompt, changed),
            )

    def with_its_defaults(self, config: RunConfig) -> RunConfig:
        """The config to resume with: where the run was begun with an earlier default, it goes on with that.

        A setting that is at today's default counts as one that the config does not name.
        """
        with disk_errors(self.path):
            if not self.config.exists():
                return config
            written = self._saved_config()
        saved, now = _flat(_with_defaults(written)), _flat(dataclasses.asdict(config))
        today = _flat({field.name: defaults(field.type) for field in dataclasses.fields(RunConfig)})
        sections: dict[str, dict[str, Any]] = {}
        for name, value in _EARLIER_DEFAULTS.items():
            if name in saved and saved[name] == value and now[name] == today[name]:
                section, _, key = name.partition(".")
                sections.setdefault(section, {})[key] = value
        if sections:
            _log.warning(
                f"{self.path} goes on with what it was begun with, an earlier version's default: {_told(sections)}"
            )
        changed = {name: dataclasses.replace(getattr(config, name), **own) for name, own in sections.items()}
        return dataclasses.replace(config, **changed)

    def renamed_sources(self, config: RunConfig) -> list[str]:
        """The settings that name other files or another model than those that the run was made with."""
        return [str(told) for name, told in self._changed(config).items() if name in _SOURCES]

    def _changed(self, config: RunConfig) -> dict[str, "_Change"]:
        saved, now = _flat(_with_defaults(self._saved_config())), _flat(yaml.safe_load(config.to_yaml()))
        return {
            name: _Change(name, saved.get(name), now.get(name))
            for name in {**saved, **now}
            if saved.get(name) != now.get(name)
        }

    def _holds_no_work(self) -> bool:
        """Whether there is nothing, or a run that ended before its first checkpoint: starting anew loses nothing."""
        held = {file.name for file in self.path.iterdir() if file.is_dir() or not file.name.startswith(_LEFTOVERS)}
        if held <= {self.lock.path.name}:
            return True
        own = {self.config.name, self.log.name, self.lock.path.name, "checkpoints"}
        checkpoints = self._checkpoint(LAST).parent
        has_checkpoint = checkpoints.exists() and any(file.suffix == ".pt" for file in checkpoints.iterdir())
        return held <= own and self.config.name in held and not has_checkpoint and self._has_run_config()

    def _has_run_config(self) -> bool:
        try:
            return set(self._saved_config()) == {"model", "prompt", "data", "train"}
        except TrainingError:
            return False

    def _saved_config(self) -> dict[str, Any]:
        content = _read(self.config, _MOST_TEXT_BYTES, "Set it back, and give what is to be changed as --SETTING VALUE")
        try:
            saved = yaml.safe_load(content)
        except (yaml.YAMLError, UnicodeDecodeError):
            saved = None
        if not isinstance(saved, dict):
            raise TrainingError(
                f"{self.config} is broken", "the config that the run wrote", "Choose another output_dir"
            )
        return saved

    def start(self, config: RunConfig, step: int) -> None:
        """Writes the config with all defaults: from here on the directory holds a run, which is at `step`.

        Removes what a killed process left half-written, and what it wrote after that step; at step 0 the run begins
        anew, and all that was logged is removed.
        """
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        checkpoints = self._checkpoint(LAST).parent
        for place in (each for each in (self.path, checkpoints, self._snapshots) if each.exists()):
            for leftover in place.iterdir():
                if leftover.name.startswith(_LEFTOVERS) or (place == self._snapshots and leftover.suffix != _SNAPSHOT):
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        with sealed_file(self.config) as beside:
            beside.write_text(f"{config.to_yaml()}# {BLANK}\n", encoding="utf-8", newline="\n")
        self.cut_log(step if step > 0 else -1)

    def require_space(self, num_bytes: int) -> None:
        """Raises `TrainingError` when the disk has no room for the last and the best checkpoint and a new one."""
        existing = next(parent for parent in (self.path, *self.path.absolute().parents) if parent.exists())
        free, needed = shutil.disk_usage(existing).free, 3 * num_bytes
        if free < needed:
            raise TrainingError(
                f"{self.path} cannot be written: {needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB free",
                "room for its checkpoints",
                "Free some space, or choose another train.output_dir",
            )

    def require_there(self) -> None:
        """Raises `TrainingError` where the directory of a run at work is gone: nothing is written in its place."""
        if not self.config.exists():
            raise TrainingError(
                f"{self.path}, removed or moved while the run was at work",
                "the directory that it began in",
                "If it was moved, go on with --resume and its new name as train.output_dir",
            )

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        """Writes `checkpoints/NAME.pt` in place of the older one; a reader sees the old one or the new one."""
        with whole_file(self._checkpoint(name)) as beside:
            torch.save(dict(state), beside)
            seal_zip(beside)

    def load_checkpoint(self, name: str) -> dict[str, Any] | None:
        """Reads a checkpoint, without running any code in it; None where there is none."""
        path = self._checkpoint(name)
        if not path.exists():
            return None
        content = _read(path, _MOST_TENSOR_BYTES, self._instead_of(name))
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            return {key: state[key] for key in STATE}
        except (RuntimeError, ValueError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise TrainingError(
                f"checkpoint {path} is broken ({error})", "a whole checkpoint", self._instead_of(name)
            ) from error

    def _instead_of(self, name: str) -> str:
        """What to do about a broken checkpoint."""
        other = self._checkpoint(BEST)
        if name == BEST or not other.exists():
            return "Remove it and resume again"
        return f"Put {other} in its place to go on from there, or remove both to begin anew; then resume again"

    def save_snapshot(self, step: int, prompt_PH: Tensor) -> None:
        """Writes the prompt as it is at a step, to follow it later."""
        with whole_file(self._snapshots / f"{step:08}{_SNAPSHOT}") as beside:
            own_PH = prompt_PH.detach().float().cpu().contiguous()
            save_file({"prompt_embeddings": own_PH}, beside, metadata={"seal": BLANK})
            seal(beside)

    @property
    def has_snapshots(self) -> bool:
        """Whether the run kept any snapshot; none is read to find out."""
        return bool(self._snapshot_files())

    def snapshots(self) -> dict[int, Tensor]:
        """Step -> the prompt as it was then, `[P, H]` fp32; in the order of steps."""
        found = {}
        for file in self._snapshot_files():
            content = _read(file, _MOST_TENSOR_BYTES, "Remove it")
            try:
                found[int(file.stem)] = load(content)["prompt_embeddings"]
            except (SafetensorError, KeyError) as error:
                raise TrainingError(f"snapshot {file} is broken ({error})", "a whole one", "Remove it") from error
        return found

    def _snapshot_files(self) -> list[Path]:
        return sorted(self._snapshots.glob(f"[0-9]*{_SNAPSHOT}")) if self._snapshots.exists() else []

    def append_log(self, record: Mapping[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        with disk_errors(self.log), self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without one that was cut off while it was written."""
        records = [_record(line) for line in self._log_lines()]
        return [record for record in records if record is not None]

    def cut_log(self, step: int) -> None:
        """Removes the lines of metrics.jsonl and the snapshots after `step`: those steps will be run again."""
        for file in self._snapshot_files():
            if int(file.stem) > step:
                file.unlink()
        if not self.log.exists():
            return
        kept = [line for line in self._log_lines() if (record := _record(line)) and record["step"] <= step]
        with whole_file(self.log) as beside:
            beside.write_bytes(b"".join(kept))

    def _log_lines(self) -> list[bytes]:
        if not self.log.exists():
            return []
        return _read(self.log, _MOST_LOG_BYTES, "Remove it").splitlines(keepends=True)

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Writes metrics.json, which ends the run."""
        with sealed_file(self.metrics) as beside:
            text = json.dumps({**metrics, "seal": BLANK}, indent=2) + "\n"
            beside.write_text(text, encoding="utf-8", newline="\n")

    def read_metrics(self) -> dict[str, Any]:
        """Reads metrics.json."""
        remedy = "Remove it and resume: the prompt is measured again"
        content = _read(self.metrics, _MOST_TEXT_BYTES, remedy)
        try:
            metrics = read_json(content, Metrics)
        except ValueError as error:
            raise TrainingError(f"{self.metrics} is broken ({error})", "what the run wrote", remedy) from error
        return {key: value for key, value in metrics.items() if key != "seal"}

    @property
    def _snapshots(self) -> Path:
        return self.path / "checkpoints" / "prompts"

    def _checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.pt"


def _read(path: Path, most_bytes: int, remedy: str) -> bytes:
    """A file's content, as the run wrote it."""
    try:
        content = read_regular(path, most_bytes)
    except FileError as error:
        raise TrainingError(error.received, error.expected, error.remedy) from error
    if has_changed(content):
        raise TrainingError(f"{path} has changed since it was written", "the file that the run wrote", remedy)
    return content


def _record(line: bytes) -> dict[str, Any] | None:
    """A log line's record; None for a line that was cut off while it was written."""
    try:
        return read_json(line, LogLine)
    except ValueError:
        return None


def _with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved config with what the version that wrote it did for the settings that it did not know."""
    known = {field.name: defaults(field.type) for field in dataclasses.fields(RunConfig)}
    for name, value in _EARLIER_DEFAULTS.items():
        section, _, key = name.partition(".")
        known[section][key] = value
    return {name: {**known.get(name, {}), **each} if isinstance(each, dict) else each for name, each in saved.items()}


def _told(sections: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in _flat(sections).items())


def _flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Section -> key -> value as dotted keys; a section that is none stays as it is."""
    flat = {}
    for section, settings in sections.items():
        if isinstance(settings, dict):
            flat.update({f"{section}.{key}": value for key, value in settings.items()})
        else:
            flat[section] = settings
    return flat


@dataclass(frozen=True)
class _Change:
    """A setting that is not as it was."""

    name: str
    """Dotted."""
    saved: Any
    """What it was."""
    now: Any
    """What it is."""

    @property
    def is_other_name(self) -> bool:
        """Whether it named something then and names something now."""
        return self.saved is not None and self.now is not None

    def __str__(self) -> str:
        return f"{self.name}: {self.now!r} instead of {self.saved!r}"


def _remedy(prompt: Path, changed: Collection[str]) -> str:
    """What to do about changed settings."""
    if {"train.max_steps", "train.num_train_epochs"}.isdisjoint(changed):
        return "Set them back, or start a new run in another train.output_dir"
    return (
        "Set them back; to train the prompt further once this run has ended, start a new run in another "
        f"train.output_dir with prompt.init: prompt and prompt.init_prompt: {prompt}"
    )
