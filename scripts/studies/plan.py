"""A study's YAML file: which runs it asks for.

Knows nothing of how a run is made, or of what comes out of it.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ptuning.errors import ConfigError

KINDS = (
    *("prompt", "ensemble", "defaults", "readable", "hardened"),
    *("words", "peft_prompt_tuning", "peft_p_tuning", "lora", "all_weights"),
)
"""How a run learns. Those of the first line are ptuning's: `ensemble` averages three prompts, `readable` measures what
texts in the prompt's place score, `hardened` searches one of them. `words` learns nothing."""
MOST_SEEDS = 10
_OF_ALL_RUNS = ("num_train", "num_validation", "num_test", "model")
_OF_METHODS = ("slots", "peft_steps", "num_shots")
_NEEDED = {"tasks", "seeds", "model", "methods"}
_KEYS = _NEEDED | {"common", *_OF_ALL_RUNS}


@dataclass(frozen=True)
class Run:
    """One training: everything that its result follows from."""

    method: str
    """Its name in the tables."""
    kind: str
    """One of `KINDS`."""
    task: str
    """One of the development tasks."""
    seed: int
    """Seed of the rows that are drawn, their order, and what is trained."""
    model: str
    """Directory of the frozen model."""
    slots: str = "20/0/0"
    """Virtual tokens before the text, between the text and the question, and before the answer; words may stand around
    a number."""
    num_train: int | str | None = None
    """Training rows: how many in all, or how many a class ("16 a class"); None: all."""
    num_validation: int = 500
    """Validation rows."""
    num_test: int = 1000
    """Test rows."""
    peft_steps: int | None = None
    """In place of `train.max_steps`: as many steps as take the time of so many of PEFT's prompt tuning."""
    num_shots: int = 0
    """Demonstrations in front of each row, for `words`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Dotted settings of `ptuning train`; the other kinds read the rate, the steps, and the batch size of them."""

    @property
    def id(self) -> str:
        """The same for two runs that are the same, whatever their methods are called."""
        what = {key: value for key, value in vars(self).items() if key != "method"}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def group(self) -> tuple[str, str, str]:
        """What runs of the same task and method have in common that differ in the seed alone."""
        return (
            self.task,
            self.method,
            json.dumps([*(getattr(self, key) for key in _OF_METHODS), self.settings], sort_keys=True),
        )


@dataclass(frozen=True)
class Study:
    """All runs of a study."""

    runs: tuple[Run, ...]
    """The runs, those of the first seed first."""

    @classmethod
    def from_yaml(cls, path: Path) -> "Study":
        """Reads a study; raises `ConfigError` for what it does not know."""
        text = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        unknown, missing = sorted(set(text) - _KEYS), sorted(_NEEDED - set(text))
        if unknown:
            raise ConfigError(f"{path}: {', '.join(unknown)}", f"of {', '.join(sorted(_KEYS))}", "Remove the others")
        if missing:
            raise ConfigError(f"{path} without {', '.join(missing)}", f"{', '.join(sorted(_NEEDED))}", "Add them")
        if len(text["seeds"]) > MOST_SEEDS:
            raise ConfigError(f"{len(text['seeds'])} seeds", f"at most {MOST_SEEDS}", "Take fewer")
        shared = {key: text[key] for key in _OF_ALL_RUNS if key in text}
        runs = [
            Run(method, kind, task, seed, **its_own, **shared)
            for seed, task, (method, its) in itertools.product(text["seeds"], text["tasks"], text["methods"].items())
            for kind, its_own in _variants(_of_task({**text.get("common", {}), **its}, task))
        ]
        return cls(tuple(runs))


def _of_task(settings: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The settings of one task: a setting may name a value for each task."""
    named = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    for key, value in named.items():
        if task not in value:
            raise ConfigError(f"{key} without {task}", f"a value for {task}", "Add it")
    return {**settings, **{key: value[task] for key, value in named.items()}}


def _variants(settings: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every combination of the settings that are lists: the kind, and the other fields of the run."""
    kind = settings.get("kind")
    if kind not in KINDS:
        raise ConfigError(f"kind: {kind}", f"one of {', '.join(KINDS)}", "Correct it")
    if kind == "defaults" and any(isinstance(value, list) for value in settings.values()):
        raise ConfigError("kind: defaults with a list of settings", "one of each", "Name several methods")
    axes = {key: _listed(value) for key, value in settings.items() if key != "kind"}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        fields: dict[str, Any] = {key: chosen.pop(key) for key in _OF_METHODS if key in chosen}
        yield kind, {**fields, "settings": chosen}


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]
