"""The prompts that a model holds: named, of any length, loaded when first used, each run once and kept.

Knows nothing of rows, answers or generation.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning.data import Example
from ptuning.errors import PromptError
from ptuning.forward import Prefix, RowPrompts
from ptuning.model import Backbone, CausalBackbone
from ptuning.prompts import Conditioned, SoftPrompt, Summary, is_prompt_directory


@dataclass(frozen=True)
class PromptInfo:
    """A line of the list of prompts."""

    name: str
    """What it is called by."""
    num_virtual_tokens: int | None
    """P; None where that is not known."""
    template: str | None
    """How rows become text; None for a prompt without a task."""
    labels: tuple[str, ...]
    """The labels it chooses among; none where it writes text."""
    results: Mapping[str, Mapping[str, Any]]
    """What was measured after training -> its metrics."""
    num_bytes: int
    """Memory it holds now: embeddings, and the kept keys and values once it has been used."""
    problem: str | None = None
    """Why it cannot be used, where that is known."""

    def __str__(self) -> str:
        """One line for people."""
        if self.problem:
            return f"{self.name}: {self.problem}"
        measured = [
            f"{name}: accuracy {each['accuracy']:.3f}" for name, each in self.results.items() if "accuracy" in each
        ]
        answers = " | ".join(self.labels) or "text"
        parts = [f"{self.num_virtual_tokens} virtual tokens", repr(self.template), answers, *measured]
        return f"{self.name}: {'; '.join(parts)} ({self.num_bytes / 1e6:.2f} MB held)"


@dataclass(frozen=True)
class Ready:
    """A prompt on the model's device, what its rows begin with having been run."""

    prompt: Tensor | Conditioned
    """`[P, H]` in the model's precision, or the encoder that reads each row."""
    prefix: Prefix | None
    """What the model keeps of what the prompt's rows begin with; None where it can keep nothing."""
    source: SoftPrompt
    """What it was made of."""
    made_for: tuple[Any, ...]
    """What else it depends on: the model's device and precision, the versions of the source's numbers."""

    @property
    def tensors(self) -> list[Tensor]:
        """All it holds."""
        own = [self.prompt] if isinstance(self.prompt, Tensor) else list(self.prompt.parameters())
        return own + [each for layer in (self.prefix.layers if self.prefix else ()) for each in layer]


class PromptLibrary(MutableMapping[str, SoftPrompt]):
    """Name -> soft prompt, beside one frozen model.

    Prompts are added, replaced and removed as in a dictionary, given as a `SoftPrompt` or a saved prompt's directory.
    `print(library)` lists them.

    Args:
        backbone: The frozen model.
        prompts: Name -> prompt or directory; or one directory, whose subdirectories that are prompts, or runs that hold
            one, become prompts by their own names, each read when it is first used.
        allow_other_base: Whether prompts tuned on another base model of the same width are taken.

    Raises:
        PromptError: When a prompt was made for another base model, or a directory holds none.
    """

    def __init__(
        self, backbone: Backbone, prompts: Mapping[str, Any] | str | Path, allow_other_base: bool = False
    ) -> None:
        self._backbone, self._allow_other_base = backbone, allow_other_base
        self._held: dict[str, SoftPrompt | Path] = {}
        self._ready: dict[str, Ready] = {}
        if isinstance(prompts, Mapping):
            self.update(prompts)
        else:
            self._held.update(_prompts_in(Path(prompts)))

    def __getitem__(self, name: str) -> SoftPrompt:
        """The prompt of that name, read from its directory where it has not been yet."""
        held = self._held[name]
        if isinstance(held, Path):
            held = SoftPrompt.load(held)
            self._require_base(held)
            self._held[name] = held
        return held

    def __setitem__(self, name: str, prompt: SoftPrompt | str | Path) -> None:
        """Adds a prompt, or replaces the one of that name; raises `PromptError` for one of another base model."""
        loaded = as_prompt(prompt)
        self._require_base(loaded)
        self._held[name] = loaded
        self._ready.pop(name, None)

    def __delitem__(self, name: str) -> None:
        """Removes a prompt and frees what it held."""
        del self._held[name]
        self._ready.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __contains__(self, name: object) -> bool:
        """Whether there is a prompt of that name; it is not read for that."""
        return name in self._held

    def __len__(self) -> int:
        return len(self._held)

    def __str__(self) -> str:
        """A line a prompt."""
        return "\n".join(map(str, self.infos())) or "no prompts"

    def infos(self) -> list[PromptInfo]:
        """What is known of each prompt; those that have not been used are not loaded for it."""
        return [self._info(name) for name in self]

    def ready(self, name: str) -> Ready:
        """The prompt as the forward pass wants it, made once and again only after it or the model has changed."""
        prompt, backbone = self[name], self._backbone
        versions = (None if each.is_inference() else each._version for each in prompt.tensors)
        made_for = (backbone.device, backbone.dtype, *versions)
        ready = self._ready.get(name)
        if ready is None or ready.source is not prompt or ready.made_for != made_for:
            ready = self._ready[name] = self._made_ready(prompt, made_for)
        return ready

    def num_run(self, name: str, example: Example) -> int | None:
        """How many of a row's leading tokens are kept as run; None where it does not begin as the prompt's rows do."""
        prefix = self.ready(name).prefix
        ids = prefix.ids if prefix else ()
        return len(ids) if len(example.ids) > len(ids) and tuple(example.ids[: len(ids)]) == ids else None

    def of_rows(self, names: list[str]) -> RowPrompts:
        """The named prompts, one a row, none of them conditioned."""
        different = list(dict.fromkeys(names))
        ready = [self.ready(name) for name in different]
        prompts = [each.prompt for each in ready if isinstance(each.prompt, Tensor)]
        prefixes = [each.prefix for each in ready if each.prefix is not None]
        return RowPrompts(prompts, prefixes, tuple(map(different.index, names)))

    @torch.no_grad()
    def _made_ready(self, prompt: SoftPrompt, made_for: tuple[Any, ...]) -> Ready:
        made = prompt.on(self._backbone.device)
        if isinstance(made, Tensor):
            made = made.to(self._backbone.dtype)
        backbone, prefix = self._backbone, None
        if isinstance(made, Tensor) and isinstance(backbone, CausalBackbone) and backbone.shares_prefix:
            slot = tuple(range(-1, -len(made) - 1, -1))
            prefix = Prefix.of(backbone, made, backbone.coder(prompt.task).common_ids if prompt.task else slot)
        return Ready(made, prefix, prompt, made_for)

    def _info(self, name: str) -> PromptInfo:
        held = self._held[name]
        try:
            known = Summary.read(held) if isinstance(held, Path) else held
        except PromptError as error:
            return PromptInfo(name, None, None, (), {}, 0, str(error))
        tensors = [] if isinstance(held, Path) else held.tensors
        tensors = tensors + (self._ready[name].tensors if name in self._ready else [])
        num_bytes = sum(
            {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values()
        )
        template, labels = (known.task.template, tuple(known.task.verbalizer or ())) if known.task else (None, ())
        return PromptInfo(name, known.num_virtual_tokens, template, labels, known.results, num_bytes)

    def _require_base(self, prompt: SoftPrompt) -> None:
        own = self._backbone
        prompt.require_base(own.name, own.width, own.fingerprint, self._allow_other_base, own.task_type)


def as_prompt(prompt: SoftPrompt | str | Path) -> SoftPrompt:
    """The prompt itself, or the one saved in that directory."""
    if isinstance(prompt, str | Path):
        return SoftPrompt.load(prompt)
    if not isinstance(prompt, SoftPrompt):
        raise PromptError(f"a prompt {prompt!r}", "a SoftPrompt or a saved prompt's directory", "Give one of the two")
    return prompt


def base_revision(prompts: Mapping[str, SoftPrompt] | str | Path, base: str) -> str | None:
    """The revision of a base model from the hub that the first of the prompts tuned on it names."""
    if isinstance(prompts, Mapping):
        known: list[SoftPrompt | Summary] = list(prompts.values())
    else:
        known = [summary for path in _prompts_in(Path(prompts)).values() if (summary := _readable(path))]
    return next((each.revision for each in known if each.base_name == base), None)


def _readable(path: Path) -> Summary | None:
    """A saved prompt's summary; None where there is none to be had, as is told once the prompt is asked for."""
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
        if each.name.startswith("."):  # a prompt that is just being written
            continue
        places = [place for place in (each, each / "prompt") if is_prompt_directory(place)]
        if places:
            found[each.name] = places[0]
    if not found:
        raise PromptError(
            f"{directory} holds no saved prompts",
            "a directory whose subdirectories are prompts, or runs",
            "Check the path; for one prompt give {name: directory}",
        )
    return found
