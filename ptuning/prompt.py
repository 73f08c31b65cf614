"""A tuned prompt as a value and as a directory: a PEFT adapter plus `ptuning.json` and a model card.

Knows nothing of models: loading a prompt needs none. Where a model is at hand, `require_base` compares it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptuning.errors import ConfigError, PromptError
from ptuning.files import whole_directory
from ptuning.fingerprint import Fingerprint
from ptuning.template import Task, Template

FORMAT_VERSION = 1
WEIGHTS_FILE, PEFT_FILE, OWN_FILE, CARD_FILE = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "ptuning.json",
    "README.md",
)
_LEADS = "All virtual tokens stand before the text, so this directory is also a PEFT prompt-tuning adapter."
_DOES_NOT_LEAD = "Its virtual tokens do not all stand before the text, so it is no PEFT adapter: load it with ptuning."
_TENSOR = "prompt_embeddings"
_PEFT_TYPES = ("PROMPT_TUNING", "P_TUNING")


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """A soft prompt and what is known of it."""

    embeddings_PH: Tensor
    """The virtual tokens' embeddings, `[P, H]`; as fp32 on the CPU, whatever was given."""
    task: Task | None = None
    """How rows become text; None for a prompt that PEFT wrote, which does not record it."""
    base_name: str | None = None
    """Directory or hub name of the base model."""
    fingerprint: Fingerprint | None = None
    """What the base model is known by; None for a prompt that PEFT wrote."""
    encoder: Mapping[str, Any] = field(default_factory=dict)
    """The prompt encoder it came from: name, hidden_size."""
    init: Mapping[str, Any] = field(default_factory=dict)
    """Where it started: kind, and token_ids (None for a row that was no token's embedding)."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Summary of the run: steps, rows, seconds, settings."""
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What was measured -> its metrics, as `Metrics.as_dict()` gives them."""
    revision: str | None = None
    """Branch, tag or commit of a base model from the hub."""
    library_version: str = metadata.version("ptuning")
    """Version of ptuning that made it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "embeddings_PH", self.embeddings_PH.detach().to("cpu", torch.float32))
        num_slots = self.task.num_virtual_tokens if self.task else len(self.embeddings_PH)
        if num_slots != len(self.embeddings_PH):
            raise PromptError(
                f"{len(self.embeddings_PH)} virtual tokens for a template with {num_slots}",
                "as many as the template's slots hold",
                "Correct the template's {prompt:N}",
            )

    @property
    def num_virtual_tokens(self) -> int:
        """P."""
        return self.embeddings_PH.shape[0]

    @property
    def width(self) -> int:
        """H, the embedding width of the base model."""
        return self.embeddings_PH.shape[1]

    @property
    def is_peft_adapter(self) -> bool:
        """Whether PEFT can use it: all virtual tokens stand before the text."""
        return self.task is None or Template.parse(self.task.template).is_leading

    def require_base(self, name: str, width: int, fingerprint: Fingerprint, allow_other_base: bool = False) -> None:
        """Raises `PromptError` when the base model is not the one the prompt was tuned on.

        Args:
            name: The base model's name, for the message.
            width: Its H, which must always agree.
            fingerprint: Its fingerprint.
            allow_other_base: Whether another base model of the same width will do.
        """
        if self.width != width:
            raise PromptError(
                f"a prompt of width {self.width} for {name} of width {width}",
                f"the base it was tuned on ({self.base_name})",
                "Load that model",
            )
        if self.fingerprint is not None and not allow_other_base and not self.fingerprint.matches(fingerprint):
            raise PromptError(
                f"a prompt tuned on {self.base_name} ({self.fingerprint}) for {name} ({fingerprint})",
                "the base it was tuned on, since another gives it another meaning",
                "Load that model, or allow it with allow_other_base=True or --allow-other-base",
            )

    def save(self, directory: str | Path) -> Path:
        """Writes the prompt's directory whole, in place of an older one.

        Templates whose slots do not lead cannot be a PEFT adapter: for them no `adapter_config.json` is written.
        """
        path = Path(directory)
        _require_replaceable(path)
        with whole_directory(path) as beside:
            embeddings_PH = self.embeddings_PH.clone().contiguous()
            save_file({_TENSOR: embeddings_PH}, beside / WEIGHTS_FILE, metadata={"format": "pt"})
            if self.is_peft_adapter:
                (beside / PEFT_FILE).write_text(json.dumps(self._peft_config(), indent=2) + "\n", encoding="utf-8")
            (beside / OWN_FILE).write_text(json.dumps(self._own_config(), indent=2) + "\n", encoding="utf-8")
            (beside / CARD_FILE).write_text(_card(self), encoding="utf-8")
        return path

    @classmethod
    def load(cls, directory: str | Path) -> "SoftPrompt":
        """Reads a prompt's directory, of ours or one that PEFT wrote for prompt tuning or P-tuning.

        Raises:
            PromptError: When it is missing, truncated or of another kind.
        """
        path = Path(directory)
        if not path.is_dir():
            raise PromptError(f"prompt directory {path} does not exist", "a saved prompt", "Check the path")
        embeddings_PH = _read_embeddings(path)
        if not (path / OWN_FILE).exists():
            peft = _read_peft(path)
            return cls(embeddings_PH, base_name=peft.get("base_model_name_or_path"), revision=peft.get("revision"))
        return _from_own(path, embeddings_PH)

    def _own_config(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "task": dataclasses.asdict(self.task) if self.task else None,
            "base": {
                "name": self.base_name,
                "revision": self.revision,
                "fingerprint": dataclasses.asdict(self.fingerprint) if self.fingerprint else None,
            },
            "encoder": dict(self.encoder),
            "init": dict(self.init),
            "training": dict(self.training),
            "results": dict(self.results),
            "embeddings_sha256": _digest(self.embeddings_PH),
            "library_version": self.library_version,
        }

    def _peft_config(self) -> dict[str, Any]:
        architecture = self.fingerprint.architecture if self.fingerprint else {}
        return {
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_name,
            "revision": self.revision,
            "inference_mode": True,
            "num_virtual_tokens": self.num_virtual_tokens,
            "token_dim": self.width,
            "num_transformer_submodules": 1,
            "num_attention_heads": architecture.get("num_attention_heads"),
            "num_layers": architecture.get("num_hidden_layers"),
            "prompt_tuning_init": "RANDOM",
        }


def _require_replaceable(path: Path) -> None:
    """Raises `PromptError` when something other than a saved prompt would be replaced."""
    held = {each.name for each in path.iterdir()} if path.is_dir() else {path.name} if path.exists() else set()
    strange = held - {WEIGHTS_FILE, PEFT_FILE, OWN_FILE, CARD_FILE}
    if strange:
        raise PromptError(
            f"{path} holds {min(strange)}, which is no part of a saved prompt",
            "a new or empty directory, or a saved prompt's",
            "Choose another directory",
        )


def _digest(embeddings_PH: Tensor) -> str:
    return hashlib.sha256(embeddings_PH.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()


def _read_embeddings(path: Path) -> Tensor:
    """The `[P, H]` tensor of a prompt directory."""
    file = path / WEIGHTS_FILE
    if not file.exists():
        raise PromptError(
            f"{path} has no {WEIGHTS_FILE}", "a saved prompt's directory", "Check the path, or save it again"
        )
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise _broken(file, str(error)) from error
    if list(tensors) != [_TENSOR] or tensors[_TENSOR].ndim != 2:
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise PromptError(
            f"{file} holds {str(shapes)[:200]}",
            f"one tensor {_TENSOR} [P, H]",
            "Give a soft prompt, not another kind of adapter",
        )
    return tensors[_TENSOR].float()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(file, str(error)) from error
    if not isinstance(content, dict):
        raise _broken(file, f"it holds a {type(content).__name__}")
    return content


def _read_peft(path: Path) -> dict[str, Any]:
    config = _read_json(path / PEFT_FILE)
    if config.get("peft_type") not in _PEFT_TYPES or config.get("num_transformer_submodules") not in (1, None):
        raise PromptError(
            f"{path} is a PEFT adapter of type {config.get('peft_type')} for {config.get('task_type')}",
            f"{' or '.join(_PEFT_TYPES)} for a causal language model",
            "Give a soft prompt",
        )
    return config


def _from_own(path: Path, embeddings_PH: Tensor) -> SoftPrompt:
    own = _read_json(path / OWN_FILE)
    if own.get("format_version") != FORMAT_VERSION:
        raise PromptError(
            f"{path / OWN_FILE} has format version {own.get('format_version')}", f"{FORMAT_VERSION}", "Upgrade ptuning"
        )
    if own.get("embeddings_sha256") != _digest(embeddings_PH):
        raise _broken(path / WEIGHTS_FILE, f"its tensor is not the one {OWN_FILE} describes")
    try:
        print_ = own["base"]["fingerprint"]
        return SoftPrompt(
            embeddings_PH,
            Task(**own["task"]) if own["task"] else None,
            own["base"]["name"],
            Fingerprint(print_["architecture"], tuple(print_["weights"]), print_["dtype"]) if print_ else None,
            encoder=own["encoder"],
            init=own["init"],
            training=own["training"],
            results=own["results"],
            revision=own["base"]["revision"],
            library_version=own["library_version"],
        )
    except (KeyError, TypeError, ConfigError) as error:
        raise _broken(path / OWN_FILE, f"{type(error).__name__}: {error}") from error


def _broken(file: Path, reason: str) -> PromptError:
    return PromptError(f"{file} is truncated or broken ({reason})", "a whole saved prompt", "Save or copy it again")


_CARD = """---
library_name: ptuning
base_model: {base}
tags: [prompt-tuning, p-tuning]
---
# Soft prompt

{num_virtual_tokens} virtual tokens of width {width} for the frozen model {base}, made by ptuning {version}.
{placement}

{sections}
"""
_USE = """```python
import ptuning

lm = ptuning.PromptedLM.from_pretrained({base}, {{"task": "THIS DIRECTORY"}})
lm.{method}([{row}], prompt="task")
```"""


def _card(prompt: SoftPrompt) -> str:
    """The model card: what it is, what was measured, how to load it."""
    task, base = prompt.task, json.dumps(prompt.base_name)
    asked, use = [], []
    if task is not None:
        answer = f"Answer: `{task.answer}`; labels: {task.verbalizer or 'free text'}"
        asked = ["```", task.template, "```", answer]
        row = "{" + ", ".join(f'"{name}": "..."' for name in Template.parse(task.template).field_names) + "}"
        method = "classify" if task.is_classification else "generate"
        use = [_USE.format(base=base, method=method, row=row)] if prompt.base_name else []
    training = [f"- {key}: {value}" for key, value in prompt.training.items()]
    sections = {"Task": asked, "Results": results_table(prompt.results), "Training": training, "Use": use}
    return _CARD.format(
        base=base,
        num_virtual_tokens=prompt.num_virtual_tokens,
        width=prompt.width,
        version=prompt.library_version,
        placement=_LEADS if prompt.is_peft_adapter else _DOES_NOT_LEAD,
        sections="\n".join(f"## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in sections.items() if lines),
    )


def results_table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Results as the lines of a Markdown table."""
    if not results:
        return []
    lines = ["| | rows | accuracy | 95 % interval | loss |", "|---|---|---|---|---|"]
    for name, measured in results.items():
        low, high = measured["interval"]
        accuracy, interval = f"{measured['accuracy']:.3f}", f"{low:.3f} to {high:.3f}"
        lines.append(f"| {name} | {measured['num_rows']:,} | {accuracy} | {interval} | {measured['loss']:.3f} |")
    return lines
