"""A tuned prompt as a value and as a directory: a PEFT adapter plus `ptuning.json` and a model card.

A conditioned prompt is no tensor but a small encoder: its directory holds the encoder's weights and is no PEFT adapter.

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

from ptuning.data.task import Task
from ptuning.data.template import Template
from ptuning.errors import ConfigError, PromptError
from ptuning.files import whole_directory
from ptuning.model.fingerprint import Fingerprint
from ptuning.prompts.encoders import Conditioned
from ptuning.prompts.model_card import model_card

FORMAT_VERSION = 1
WEIGHTS_FILE, PEFT_FILE, OWN_FILE, CARD_FILE, ENCODER_FILE = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "ptuning.json",
    "README.md",
    "encoder.safetensors",
)
_LEADS = "All virtual tokens stand before the text, so this directory is also a PEFT prompt-tuning adapter."
_DOES_NOT_LEAD = "Its virtual tokens do not all stand before the text, so it is no PEFT adapter: load it with ptuning."
_IS_CONDITIONED = "It makes each row its own prompt from its text, so it is no PEFT adapter: load it with ptuning."
_TENSOR = "prompt_embeddings"
_PEFT_TYPES = ("PROMPT_TUNING", "P_TUNING")
_TASK_TYPES = ("CAUSAL_LM", "SEQ_2_SEQ_LM")


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """A soft prompt and what is known of it."""

    embeddings_PH: Tensor
    """The virtual tokens' embeddings, `[P, H]`, a conditioned prompt's base; as fp32 on the CPU, whatever was given."""
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
    task_type: str = "CAUSAL_LM"
    """The base model's family as PEFT names it: CAUSAL_LM, or SEQ_2_SEQ_LM for encoder-decoders."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """A conditioned encoder's `state_dict`; empty for a prompt that is the same for every row."""
    library_version: str = metadata.version("ptuning")
    """Version of ptuning that made it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "embeddings_PH", _plain(self.embeddings_PH))
        object.__setattr__(self, "weights", {name: _plain(each) for name, each in self.weights.items()})
        if self.weights and Conditioned.from_weights(self.weights).prompt_PH.shape != self.embeddings_PH.shape:
            raise PromptError(
                f"embeddings_PH of shape {list(self.embeddings_PH.shape)} with an encoder's weights of another",
                "the encoder's base prompt",
                "Give weights['prompt_PH'] as embeddings_PH",
            )
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
    def tensors(self) -> list[Tensor]:
        """All it holds."""
        return [self.embeddings_PH, *self.weights.values()]

    @property
    def is_conditioned(self) -> bool:
        """Whether each row's text makes the row's own prompt."""
        return bool(self.weights)

    @property
    def _tensors(self) -> Mapping[str, Tensor]:
        """What is saved."""
        return self.weights or {_TENSOR: self.embeddings_PH}

    @property
    def not_peft(self) -> str | None:
        """Why PEFT cannot use it; None where it can."""
        if self.is_conditioned:
            return _IS_CONDITIONED
        is_leading = self.task is None or Template.parse(self.task.template).is_leading
        return None if is_leading else _DOES_NOT_LEAD

    def on(self, device: torch.device) -> Tensor | Conditioned:
        """What the forward pass takes: the embeddings `[P, H]` on that device, or the conditioned encoder."""
        if self.is_conditioned:
            return Conditioned.from_weights(self.weights).to(device).requires_grad_(False)
        return self.embeddings_PH.to(device)

    def disabled(self) -> "SoftPrompt":
        """A prompt of no virtual tokens for the same words: what the base model does by itself."""
        task = self.task and self.task.without_prompt()
        return SoftPrompt(
            self.embeddings_PH[:0],
            task,
            self.base_name,
            self.fingerprint,
            revision=self.revision,
            task_type=self.task_type,
        )

    def require_base(
        self,
        name: str,
        width: int,
        fingerprint: Fingerprint,
        allow_other_base: bool = False,
        task_type: str = "CAUSAL_LM",
    ) -> None:
        """Raises `PromptError` when the base model is not the one the prompt was tuned on.

        Args:
            name: The base model's name, for the message.
            width: Its H, which must always agree.
            fingerprint: Its fingerprint.
            allow_other_base: Whether another base model of the same width will do.
            task_type: Its family, which must always agree.
        """
        if self.width != width:
            raise PromptError(
                f"a prompt of width {self.width} for {name} of width {width}",
                f"the base it was tuned on ({self.base_name})",
                "Load that model",
            )
        if self.task_type != task_type:
            raise PromptError(
                f"a prompt for {self.task_type} for {name}, which is {task_type}",
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

        What cannot be a PEFT adapter (`not_peft`) gets no `adapter_config.json`.
        """
        path = Path(directory)
        _require_replaceable(path)
        with whole_directory(path) as beside:
            file = beside / (ENCODER_FILE if self.is_conditioned else WEIGHTS_FILE)
            tensors = {name: each.clone().contiguous() for name, each in self._tensors.items()}
            save_file(tensors, file, metadata={"format": "pt"})
            if self.not_peft is None:
                (beside / PEFT_FILE).write_text(json.dumps(self._peft_config(), indent=2) + "\n", encoding="utf-8")
            own = self._own_config()
            (beside / OWN_FILE).write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
            (beside / CARD_FILE).write_text(model_card(own, self.not_peft or _LEADS), encoding="utf-8")
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
        weights = _read_tensors(path / ENCODER_FILE) if (path / ENCODER_FILE).exists() else {}
        embeddings_PH = Conditioned.from_weights(weights).prompt_PH if weights else _read_embeddings(path)
        known = _read_fields(path)
        if known.pop("embeddings_sha256", None) not in (None, _digest(weights or {_TENSOR: embeddings_PH})):
            file = path / (ENCODER_FILE if weights else WEIGHTS_FILE)
            raise _broken(file, f"its tensor is not the one {OWN_FILE} describes")
        known.pop("num_virtual_tokens")
        return cls(embeddings_PH, **known, weights=weights)

    def _own_config(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "num_virtual_tokens": self.num_virtual_tokens,
            "width": self.width,
            "task": dataclasses.asdict(self.task) if self.task else None,
            "base": {
                "name": self.base_name,
                "revision": self.revision,
                "task_type": self.task_type,
                "fingerprint": dataclasses.asdict(self.fingerprint) if self.fingerprint else None,
            },
            "encoder": dict(self.encoder),
            "init": dict(self.init),
            "training": dict(self.training),
            "results": dict(self.results),
            "embeddings_sha256": _digest(self._tensors),
            "library_version": self.library_version,
        }

    def _peft_config(self) -> dict[str, Any]:
        architecture = self.fingerprint.architecture if self.fingerprint else {}
        return {
            "peft_type": "PROMPT_TUNING",
            "task_type": self.task_type,
            "base_model_name_or_path": self.base_name,
            "revision": self.revision,
            "inference_mode": True,
            "num_virtual_tokens": self.num_virtual_tokens,
            "token_dim": self.width,
            "num_transformer_submodules": 1,
            "num_attention_heads": architecture.get("num_attention_heads") or 1,  # PEFT asks for it, and uses none
            "num_layers": architecture.get("num_hidden_layers"),
            "prompt_tuning_init": "RANDOM",
        }


@dataclass(frozen=True)
class Summary:
    """What a saved prompt's JSON tells, its numbers left unread."""

    num_virtual_tokens: int | None
    """P."""
    task: Task | None
    """How rows become text."""
    results: Mapping[str, Mapping[str, Any]]
    """What was measured."""
    base_name: str | None
    """The base model."""
    revision: str | None
    """Its revision."""

    @classmethod
    def read(cls, directory: Path) -> "Summary":
        """Reads it; raises `PromptError` where it is missing or broken."""
        known = _read_fields(directory)
        fields = ("num_virtual_tokens", "task", "results", "base_name", "revision")
        return cls(**{"task": None, "results": {}, **{key: known[key] for key in fields if key in known}})


def is_prompt_directory(path: Path) -> bool:
    """Whether a directory looks like a saved prompt of ours, or like a soft prompt of PEFT's."""
    if (path / OWN_FILE).is_file():
        return True
    try:
        return _read_json(path / PEFT_FILE).get("peft_type") in _PEFT_TYPES
    except PromptError:
        return False


def _require_replaceable(path: Path) -> None:
    """Raises `PromptError` when something other than a saved prompt would be replaced."""
    held = {each.name for each in path.iterdir()} if path.is_dir() else {path.name} if path.exists() else set()
    strange = held - {WEIGHTS_FILE, PEFT_FILE, OWN_FILE, CARD_FILE, ENCODER_FILE}
    if strange:
        raise PromptError(
            f"{path} holds {min(strange)}, which is no part of a saved prompt",
            "a new or empty directory, or a saved prompt's",
            "Choose another directory",
        )


def _plain(tensor: Tensor) -> Tensor:
    """A copy of its own, fp32 on the CPU: a saved prompt does not change with further training."""
    return tensor.detach().to("cpu", torch.float32, copy=True)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(_plain(tensor).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.exists():
        raise PromptError(
            f"{file.parent} has no {file.name}", "a saved prompt's directory", "Check the path, or save it again"
        )
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise _broken(file, str(error)) from error


def _read_embeddings(path: Path) -> Tensor:
    """The `[P, H]` tensor of a prompt directory."""
    file = path / WEIGHTS_FILE
    tensors = _read_tensors(file)
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


def _read_fields(path: Path) -> dict[str, Any]:
    """What a saved prompt's JSON tells: fields of `SoftPrompt`, num_virtual_tokens and, of ours, embeddings_sha256."""
    return _read_own(path) if (path / OWN_FILE).exists() else _read_peft(path)


def _read_peft(path: Path) -> dict[str, Any]:
    config = _read_json(path / PEFT_FILE)
    kind, task_type = config.get("peft_type"), config.get("task_type") or "CAUSAL_LM"
    if kind not in _PEFT_TYPES or task_type not in _TASK_TYPES:
        raise PromptError(
            f"{path} is a PEFT adapter of type {kind} for {task_type}",
            f"{' or '.join(_PEFT_TYPES)} for {' or '.join(_TASK_TYPES)}",
            "Give a soft prompt",
        )
    if config.get("num_transformer_submodules") not in (1, None):
        raise PromptError(
            f"{path} is a PEFT adapter with virtual tokens for the decoder too (num_transformer_submodules: 2)",
            "virtual tokens for the encoder alone, all that PEFT itself uses when it generates",
            "Train it with num_transformer_submodules=1",
        )
    return {
        "base_name": config.get("base_model_name_or_path"),
        "revision": config.get("revision"),
        "task_type": task_type,
        "num_virtual_tokens": config.get("num_virtual_tokens"),
    }


def _read_own(path: Path) -> dict[str, Any]:
    own = _read_json(path / OWN_FILE)
    if own.get("format_version") != FORMAT_VERSION:
        raise PromptError(
            f"{path / OWN_FILE} has format version {own.get('format_version')}", f"{FORMAT_VERSION}", "Upgrade ptuning"
        )
    try:
        print_ = own["base"]["fingerprint"]
        return {
            "task": Task(**own["task"]) if own["task"] else None,
            "base_name": own["base"]["name"],
            "fingerprint": Fingerprint(**{**print_, "weights": tuple(print_["weights"])}) if print_ else None,
            "revision": own["base"]["revision"],
            "task_type": own["base"].get("task_type", "CAUSAL_LM"),
            "num_virtual_tokens": own.get("num_virtual_tokens"),
            **{key: own[key] for key in ("encoder", "init", "training", "results", "library_version")},
            "embeddings_sha256": own["embeddings_sha256"],
        }
    except (KeyError, TypeError, ConfigError) as error:
        raise _broken(path / OWN_FILE, f"{type(error).__name__}: {error}") from error


def _broken(file: Path, reason: str) -> PromptError:
    return PromptError(f"{file} is truncated or broken ({reason})", "a whole saved prompt", "Save or copy it again")
