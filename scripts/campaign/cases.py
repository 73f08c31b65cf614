"""The cases: each follows from a seed and a number, and spoils one thing.

Knows nothing of what ptuning makes of them.
"""

import json
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptuning.sealed import BLANK, seal

_PREDICT = ("predict", "finished", "--data", "rows.jsonl", "--output", "answers.jsonl")
_RESUME = ("train", "--config", "config.yaml", "--train.output_dir", "stopped", "--resume")
_OF_PROMPT = ("finished/prompt/adapter_model.safetensors", "finished/prompt/ptuning.json")
_OF_RUN = ("stopped/checkpoints/last.pt", "stopped/checkpoints/best.pt", "stopped/config.yaml")
_JSON = ("finished/prompt/ptuning.json", "finished/prompt/adapter_config.json")
_ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 1e300, 10**40, "", "x", "5", "\x1b[31m", [], {}, [[]], {"a": {"b": []}}, [None] * 3),
    *(float("nan"), float("inf"), "é" * 5000, ["x", 1], {"": 0}),
)
_SETTINGS = (
    *("model.name_or_path", "model.dtype", "model.device", "model.revision", "prompt.encoder", "prompt.hidden_size"),
    *("prompt.init", "data.train", "data.template", "data.answer", "data.verbalizer", "data.max_length"),
    *("data.validation_split", "data.cut_side", "train.max_steps", "train.learning_rate", "train.seed"),
    *("train.per_device_train_batch_size", "train.num_train_epochs", "train.warmup_ratio", "train.save_steps"),
    *("train.lr_scheduler_type", "train.readability", "train.max_batch_tokens", "train.early_stopping_patience"),
)
_MOST_OPERATIONS = 400  # of a process that goes on with the run, at least
Spoil = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One fault and the command that meets it."""

    kind: str
    """One of `KINDS`."""
    name: str
    """What is spoiled, and how."""
    command: tuple[str, ...]
    """The command, run in the world's folder."""
    spoil: Spoil
    """Makes the fault in a folder."""
    why: str = ""
    """Why the case may be accepted; empty where it must be refused."""
    may_change: bool = False
    """Whether another answer is right, because the rows or the settings are others."""
    kill_at: int | None = None
    """The file operation of the command's process, counted from 0, before which it is killed; then it runs again."""
    kill_after: float | None = None
    """The share of its time after which the command's process is killed; then it runs again."""

    @classmethod
    def of(cls, seed: int, number: int) -> "Case":
        """The case of that number."""
        chance = random.Random(f"{seed} {number}")
        kind = KINDS[number % len(KINDS)]
        return _MAKERS[kind](chance)


def _sealed_files(chance: random.Random) -> tuple[str, tuple[str, ...]]:
    """A file that is read back, and a command that reads it."""
    file = chance.choice((*_OF_PROMPT, *_OF_RUN))
    return file, _PREDICT if file in _OF_PROMPT else _RESUME


def _why_unread(file: str) -> str:
    """Why a file that is spoiled may do no harm."""
    if "best.pt" in file:
        return "a later step was better and replaced the file unread"
    if "last.pt" in file:
        return "without its last checkpoint the run begins anew"
    return "what is left of the settings says the same" if "config.yaml" in file else ""


def _flipped(chance: random.Random) -> Case:
    file, command = _sealed_files(chance)
    share = chance.random()

    def spoil(world: Path) -> None:
        content = bytearray((world / file).read_bytes())
        bit = int(share * 8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        (world / file).write_bytes(content)

    return Case("flipped bit", f"{file} at {share:.6f}", command, spoil, _why_unread(file))


def _cut(chance: random.Random) -> Case:
    file, command = _sealed_files(chance)
    share = chance.random()

    def spoil(world: Path) -> None:
        content = (world / file).read_bytes()
        (world / file).write_bytes(content[: int(share * len(content))])

    return Case("cut short", f"{file} at {share:.6f}", command, spoil, _why_unread(file))


def _no_file(chance: random.Random) -> Case:
    file, command = chance.choice([_sealed_files(chance), ("rows.jsonl", _PREDICT), ("config.yaml", _RESUME)])
    what = chance.choice(("pipe", "directory", "device", "huge", "missing", "link to itself"))

    def spoil(world: Path) -> None:
        path = world / file
        path.unlink()
        if what == "pipe":
            os.mkfifo(path)
        elif what == "directory":
            path.mkdir()
        elif what == "device":
            path.symlink_to("/dev/zero")
        elif what == "huge":
            with path.open("wb") as hole:
                hole.truncate(1 << 37)
        elif what == "link to itself":
            path.symlink_to(path.name)

    is_told = what == "missing" and "best.pt" in file
    why = "it is told that the best step is gone, and the last one kept" if is_told else _why_unread(file)
    return Case("no file", f"{file}: {what}", command, spoil, why, may_change=is_told)


def _wrong_type(chance: random.Random) -> Case:
    file = chance.choice(_JSON)
    value, share = chance.choice(_ODD), chance.random()

    def spoil(world: Path) -> None:
        if "adapter_config" in file:
            (world / _JSON[0]).unlink()
        content = json.loads((world / file).read_text(encoding="utf-8"))
        places = list(_places(content))
        holder, key = places[int(share * len(places))]
        holder[key] = value
        _write(world / file, json.dumps(content))

    why = "the key is for people or for PEFT, or the value is of the right type"
    return Case("wrong type", f"{file} at {share:.6f}: {value!r:.60}", _PREDICT, spoil, why, may_change=True)


def _places(content: Any) -> Any:
    """Every holder and key of a tree of JSON."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from _places(content[key])


def _write(file: Path, text: str) -> None:
    """Writes a file, sealed where it was."""
    blank = re.sub(r"ptuning-sha256:[0-9a-f]{64}:ptuning-sha256", BLANK, text)
    file.write_text(blank, encoding="utf-8")
    if blank.count(BLANK) == 1:
        seal(file)


def _setting(chance: random.Random) -> Case:
    key, value = chance.choice(_SETTINGS), chance.choice(_ODD)
    section, _, name = key.partition(".")

    def spoil(world: Path) -> None:
        content = json.loads((world / "config.yaml").read_text(encoding="utf-8"))
        content.setdefault(section, {})[name] = value
        (world / "config.yaml").write_text(json.dumps(content), encoding="utf-8")

    command = ("train", "--config", "config.yaml", "--train.output_dir", "new", "--train.max_steps", "2")
    why = "the setting allows that value"
    return Case("setting", f"{key}: {value!r:.60}", command, spoil, why, may_change=True)


def _killed(chance: random.Random) -> Case:
    number = chance.randrange(_MOST_OPERATIONS)
    why = "it goes on to the same prompt and the same files"
    return Case("killed", f"at file operation {number}", _RESUME, lambda world: None, why, kill_at=number)


def _killed_in_time(chance: random.Random) -> Case:
    share = chance.random()
    why = "it goes on to the same prompt and the same files"
    return Case("killed in time", f"after {share:.4f}", _RESUME, lambda world: None, why, kill_after=share)


def _rows(chance: random.Random) -> Case:
    name = chance.choice(("rows.jsonl", "rows.csv", "rows.tsv"))
    command = tuple(name if each == "rows.jsonl" else each for each in _PREDICT)
    what = chance.choice(("byte", "cut", "repeat", "insert"))
    share, byte = chance.random(), chance.choice(b'\x00\xff"\n\r,\t{}[]\\\x1b\xc3\xe2\xf0' + bytes(range(256)))

    def spoil(world: Path) -> None:
        content = bytearray((world / name).read_bytes())
        place = int(share * len(content))
        if what == "byte":
            content[place] = byte
        elif what == "cut":
            del content[place:]
        elif what == "repeat":
            content[place:place] = content[place : place + 40] * 50
        else:
            content[place:place] = bytes([byte]) * 5
        (world / name).write_bytes(content)

    why = "what is left are rows, if others"
    return Case("rows", f"{name}: {what} {byte} at {share:.6f}", command, spoil, why, may_change=True)


_MAKERS: dict[str, Callable[[random.Random], Case]] = {
    "flipped bit": _flipped,
    "cut short": _cut,
    "no file": _no_file,
    "wrong type": _wrong_type,
    "setting": _setting,
    "rows": _rows,
    "killed": _killed,
    "killed in time": _killed_in_time,
}
KINDS = tuple(_MAKERS)
"""What is spoiled."""
