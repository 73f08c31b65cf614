"""Holds the named prompts of a model: loads each on first use, runs its prefix once, and keeps the result.

Knows nothing of answers or generation.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning.data import Example, Task
from ptuning.errors import PromptError
from ptuning.forward import BatchPrompt, KeptPrompts, Prefix, as_batch_prompt
from ptuning.model import Backbone, CausalBackbone
from ptuning.prompts import PromptEncoder, SoftPrompt, Summary, is_prompt_directory


@dataclass(frozen=True)
class PromptInfo:
    """What is known about one prompt of a library."""

    name: str
    """The prompt's name."""
    num_virtual_tokens: int | None
    """P; None if it is not known."""
    template: str | None
    """How rows become text; None for a prompt without a task."""
    labels: tuple[str, ...]
    """The labels that it chooses from; empty if it generates text."""
    results: Mapping[str, Mapping[str, Any]]
    """Name of an evaluation after training -> its metrics."""
    num_bytes: int
    """Memory in use now: embeddings and, once the prompt has been used, the kept keys and values."""
    problem: str | None = None
    """Why it cannot be used, if that is known."""

    def __str__(self) -> str:
        """One line for display."""
        if self.problem:
            return f"{self.name}: {self.problem}"
        measured = [
            f"{name}: accuracy {each['accuracy']:.3f}" for name, each in self.results.items() if "accuracy" in each
        ]
        answers = " | ".join(self.labels) or "text"
        parts = [f"{self.num_virtual_tokens} virtual tokens", repr(self.template), answers, *measured]
        return f"{self.name}: {'; '.join(parts)} ({self.num_bytes / 1e6:.2f} MB held)"


class ReadyPrompt:
    """A prompt on the model's device; its prefix is run once, when it is first needed.

    A call takes it once and keeps it until the call ends, even if the prompt is replaced or removed meanwhile.

    Args:
        name: The prompt's name.
        source: The prompt as it was given or loaded.
        backbone: The frozen model.
    """

    def __init__(self, name: str, source: SoftPrompt, backbone: Backbone) -> None:
        self.name, self.source, self._backbone = name, source, backbone
        made = source.on(backbone.device)
        self.made: Tensor | PromptEncoder = made.to(backbone.dtype) if isinstance(made, Tensor) else made
        """`[P, H]` in the model's precision, or the encoder that reads each row."""
        self._made_for = self._state()
        self._prefix: Prefix | None = None
        self._has_run, self._lock = False, threading.Lock()

    def _state(self) -> tuple[Any, ...]:
        """What else it depends on: the model's device and precision, and the versions of the source's tensors."""
        versions = (None if each.is_inference() else each._version for each in self.source.tensors)
        return self._backbone.device, self._backbone.dtype, *versions

    def is_of(self, source: SoftPrompt) -> bool:
        """Whether it was made from `source`, and neither `source` nor the model has changed since."""
        return self.source is source and self._made_for == self._state()

    @property
    def prefix(self) -> Prefix | None:
        """The kept prefix of the prompt's rows; None if the model or the prompt cannot keep one."""
        with self._lock:
            if not self._has_run:
                self._prefix, self._has_run = self._run(), True
            return self._prefix

    @torch.no_grad()
    def _run(self) -> Prefix | None:
        backbone, made, task = self._backbone, self.made, self.source.task
        if not (isinstance(made, Tensor) and isinstance(backbone, CausalBackbone) and backbone.supports_prefix_cache):
            return None
        slot = tuple(range(-1, -len(made) - 1, -1))
        return Prefix.of(backbone, made, backbone.coder(task).prefix_ids if task else slot)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that it holds now."""
        own = [self.made] if isinstance(self.made, Tensor) else list(self.made.parameters())
        return own + [each for layer in (self._prefix.layers if self._prefix else ()) for each in layer]

    @property
    def task(self) -> Task:
        """How rows become text; raises `PromptError` if the prompt has no task."""
        if self.source.task is None:
            raise PromptError(
                f"prompt {self.name!r} without a task (PEFT does not save one)",
                "a template",
                "Give it one: dataclasses.replace(prompt, task=ptuning.Task(template, ...))",
            )
        return self.source.task

    def prefix_length(self, example: Example) -> int | None:
        """The number of a row's leading tokens that the kept prefix covers; None if the row begins differently."""
        ids = self.prefix.ids if self.prefix else ()
        return len(ids) if len(example.ids) > len(ids) and tuple(example.ids[: len(ids)]) == ids else None


def prompt_of_rows(ready: Sequence[ReadyPrompt]) -> BatchPrompt:
    """The prompt of a batch, from one ready prompt per row; a conditioned prompt cannot share a batch with others."""
    if ready[0].source.is_conditioned:
        return as_batch_prompt(ready[0].made)
    different = list(dict.fromkeys(ready))
    prompts = [each.made for each in different if isinstance(each.made, Tensor)]
    prefixes = [each.prefix for each in different if each.prefix is not None]
    return KeptPrompts(prompts, prefixes, tuple(map(different.index, ready)))


class PromptLibrary(MutableMapping[str, SoftPrompt]):
    """A mapping of names to soft prompts for one frozen model.

    Any thread may add, replace and remove prompts as in a dictionary, given as a `SoftPrompt`, a saved prompt's
    directory or its name on the hub. `print(library)` lists them.

    Args:
        backbone: The frozen model.
        prompts: Name -> prompt or directory; or one directory. Each of its subdirectories that is a saved prompt, or a
            run with one, becomes a prompt of that name, read on first use.
        allow_other_base: Whether to accept prompts tuned on another base model of the same width.

    Raises:
        PromptError: If a prompt was tuned on another base model, or a directory holds no prompts.
    """

    def __init__(
        self, backbone: Backbone, prompts: Mapping[str, Any] | str | Path, allow_other_base: bool = False
    ) -> None:
        self._backbone, self._allow_other_base = backbone, allow_other_base
        self._held: dict[str, SoftPrompt | Path] = {}
        self._ready: dict[str, ReadyPrompt] = {}
        self._lock = threading.RLock()  # guards both dictionaries
        if isinstance(prompts, Mapping):
            self.update(prompts)
        else:
            self._held.update(_prompts_in(Path(prompts)))

    def __getitem__(self, name: str) -> SoftPrompt:
        """The named prompt, read from its directory on first use."""
        with self._lock:
            held = self._held[name]
            if isinstance(held, Path):
                held = SoftPrompt.load(held)
                self._require_base(held)
                self._held[name] = held
            return held

    def __setitem__(self, name: str, prompt: SoftPrompt | str | Path) -> None:
        """Adds or replaces a prompt; raises `PromptError` if it was tuned on another base model."""
        loaded = as_prompt(prompt)
        self._require_base(loaded)
        with self._lock:
            self._held[name] = loaded
            self._ready.pop(name, None)

    def __delitem__(self, name: str) -> None:
        """Removes a prompt; its memory is freed once no call uses it any more."""
        with self._lock:
            del self._held[name]
            self._ready.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names held at this moment."""
        with self._lock:
            return iter(list(self._held))

    def __contains__(self, name: object) -> bool:
        """Whether there is a prompt of that name; does not read it."""
        return name in self._held

    def __len__(self) -> int:
        return len(self._held)

    def __str__(self) -> str:
        """One line per prompt."""
        return "\n".join(map(str, self.infos())) or "no prompts"

    def infos(self) -> list[PromptInfo]:
        """What is known about each prompt; loads no prompts."""
        with self._lock:
            held = [(name, each, self._ready.get(name)) for name, each in self._held.items()]
        return [_info(*each) for each in held]

    def ready(self, name: str) -> ReadyPrompt:
        """The prompt, ready for the forward pass; rebuilt only after it or the model has changed."""
        with self._lock:
            prompt, ready = self[name], self._ready.get(name)
            if ready is None or not ready.is_of(prompt):
                ready = self._ready[name] = ReadyPrompt(name, prompt, self._backbone)
            return ready

    def take(self, names: Iterable[str]) -> dict[str, ReadyPrompt]:
        """The named prompts as they are at this moment; raises `PromptError` for an unknown name."""
        with self._lock:
            different = list(dict.fromkeys(names))
            unknown = [name for name in different if name not in self._held]
            if unknown:
                expected = f"one of {', '.join(self._held)}" if self._held else "a loaded prompt, but there is none"
                raise PromptError(
                    f"prompt={unknown[0]!r}", expected, "Name a prompt that was loaded, or add it to lm.prompts"
                )
            return {name: self.ready(name) for name in different}

    def _require_base(self, prompt: SoftPrompt) -> None:
        own = self._backbone
        prompt.require_base(own.name, own.width, own.fingerprint, self._allow_other_base, own.task_type)


def _info(name: str, held: SoftPrompt | Path, ready: ReadyPrompt | None) -> PromptInfo:
    """What is known about a prompt."""
    try:
        known = Summary.read(held) if isinstance(held, Path) else held
    except PromptError as error:
        return PromptInfo(name, None, None, (), {}, 0, str(error))
    tensors = [*([] if isinstance(held, Path) else held.tensors), *(ready.tensors if ready else [])]
    num_bytes = sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())
    template, labels = (known.task.template, tuple(known.task.verbalizer or ())) if known.task else (None, ())
    return PromptInfo(name, known.num_virtual_tokens, template, labels, known.results, num_bytes)


def as_prompt(prompt: SoftPrompt | str | Path) -> SoftPrompt:
    """The prompt itself, or the one saved in that directory or on the hub."""
    if isinstance(prompt, str | Path):
        return SoftPrompt.from_pretrained(prompt)
    if not isinstance(prompt, SoftPrompt):
        raise PromptError(f"a prompt {prompt!r}", "a SoftPrompt or a saved prompt's directory", "Give one of the two")
    return prompt


def base_revision(prompts: Mapping[str, SoftPrompt] | str | Path, base: str) -> str | None:
    """The revision of a hub model, as recorded by the first prompt that was tuned on it."""
    if isinstance(prompts, Mapping):
        known: list[SoftPrompt | Summary] = list(prompts.values())
    else:
        known = [summary for path in _prompts_in(Path(prompts)).values() if (summary := _readable(path))]
    return next((each.revision for each in known if each.base_name == base), None)


def _readable(path: Path) -> Summary | None:
    """A saved prompt's summary; None if it cannot be read, which is an error only once the prompt is used."""
    try:
        return Summary.read(path)
    except PromptError:
        return None


def _prompts_in(directory: Path) -> dict[str, Path]:
    """The prompts in a directory's subdirectories: name -> the prompt's own directory."""
    if not directory.is_dir():
        raise PromptError(f"prompt directory {directory} does not exist", "a directory of prompts", "Check the path")
    found = {}
    for each in sorted(directory.iterdir()):
        if each.name.startswith("."):  # a prompt that is being written
            continue
        places = [place for place in (each, each / "prompt") if is_prompt_directory(place)]
        if places:
            found[each.name] = places[0]
    if not found:
        raise PromptError(
            f"{directory} holds no saved prompts",
            "a directory whose subdirectories are prompts or runs",
            "Check the path; for one prompt give {name: directory}",
        )
    return found
