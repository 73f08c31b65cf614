"""A tuned prompt as a value, saved to a directory and loaded from it.

Knows nothing of how models run: loading a prompt needs no model. `require_base` compares a model with the one that the
prompt was tuned on.

The directory is a PEFT adapter plus `ptuning.json` and a model card. A conditioned prompt is a small encoder and not a
tensor, so its directory holds the encoder's weights and is not a PEFT adapter.
"""

import dataclasses
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning.data import Task, Template
from ptuning.errors import PromptError
from ptuning.model import Fingerprint
from ptuning.prompts import encoders, hub, storage
from ptuning.prompts.encoders import PromptEncoder

_log = logging.getLogger(__name__)

_LEADS = "All virtual tokens come before the text, so this directory is also a PEFT prompt-tuning adapter."
_DOES_NOT_LEAD = "Not all virtual tokens come before the text, so this is not a PEFT adapter: load it with ptuning."
_IS_CONDITIONED = "It computes one prompt per row from its text, so this is not a PEFT adapter: load it with ptuning."
_DEFAULT_ENCODER = "conditioned"  # for saved weights whose encoder is not named


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """A soft prompt and what is known about it."""

    embeddings_PH: Tensor
    """The virtual tokens' embeddings `[P, H]`, or a conditioned prompt's base; always stored in fp32 on the CPU."""
    task: Task | None = None
    """How rows become text; None for a prompt saved by PEFT, which does not record it."""
    base_name: str | None = None
    """Directory or hub name of the base model."""
    fingerprint: Fingerprint | None = None
    """Identifies the base model; None for a prompt saved by PEFT."""
    encoder: Mapping[str, Any] = field(default_factory=dict)
    """The prompt encoder that computed it: name, hidden_size."""
    init: Mapping[str, Any] = field(default_factory=dict)
    """How it was initialised: kind, and token_ids (None for a row that was not a token's embedding)."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Summary of the run: steps, rows, seconds, settings."""
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of an evaluation -> its metrics, as `Metrics.as_dict()` returns them."""
    revision: str | None = None
    """Branch, tag or commit of a base model from the hub."""
    task_type: str = "CAUSAL_LM"
    """PEFT's name for the base model's family: CAUSAL_LM, or SEQ_2_SEQ_LM for encoder-decoders."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """A conditioned encoder's `state_dict`; empty for a prompt that is the same for every row."""
    verdict: Mapping[str, Any] = field(default_factory=dict)
    """What an inspection said of it: word, sentence, effect, judged_on; empty for a prompt that was not judged."""
    library_version: str = metadata.version("ptuning")
    """The version of ptuning that created it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "embeddings_PH", _finite(self.embeddings_PH))
        object.__setattr__(self, "weights", {name: _finite(each) for name, each in self.weights.items()})
        if self.weights and self._own_encoder().base_PH.shape != self.embeddings_PH.shape:
            raise PromptError(
                f"embeddings_PH of shape {list(self.embeddings_PH.shape)} with an encoder's weights of another shape",
                "the encoder's base prompt",
                "Give the encoder's base_PH as embeddings_PH",
            )
        num_slots = self.task.num_virtual_tokens if self.task else len(self.embeddings_PH)
        if num_slots != len(self.embeddings_PH):
            raise PromptError(
                f"{len(self.embeddings_PH)} virtual tokens for a template with {num_slots}",
                "the number of virtual tokens in the template's slots",
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
        """All tensors that it holds."""
        return [self.embeddings_PH, *self.weights.values()]

    @property
    def is_conditioned(self) -> bool:
        """Whether the prompt depends on each row's text."""
        return bool(self.weights)

    def _own_encoder(self) -> PromptEncoder:
        """The encoder of a conditioned prompt."""
        return encoders.of_weights(self.encoder.get("name", _DEFAULT_ENCODER), self.weights)

    @property
    def not_peft(self) -> str | None:
        """Why PEFT cannot load it; None if PEFT can."""
        if self.is_conditioned:
            return _IS_CONDITIONED
        is_leading = self.task is None or Template.parse(self.task.template).is_leading
        return None if is_leading else _DOES_NOT_LEAD

    def on(self, device: torch.device) -> Tensor | PromptEncoder:
        """What the forward pass takes, on a device: the embeddings `[P, H]`, or the encoder that reads each row."""
        if self.is_conditioned:
            return self._own_encoder().to(device).requires_grad_(False)
        return self.embeddings_PH.to(device)

    def disabled(self) -> "SoftPrompt":
        """The same words without virtual tokens: what the base model does by itself."""
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
        """Raises `PromptError` if the base model is not the one that the prompt was tuned on.

        Args:
            name: The base model's name, for the message.
            width: Its embedding width, which must always match.
            fingerprint: Its fingerprint.
            allow_other_base: Whether another base model of the same width and family is accepted.
            task_type: Its family, which must always match.
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
                "the base it was tuned on, since another base gives it another meaning",
                "Load that model, or allow it with allow_other_base=True or --allow-other-base",
            )

    def save(self, directory: str | Path) -> Path:
        """Writes the prompt's directory, replacing an older one as a whole.

        A prompt that PEFT cannot load (`not_peft`) gets no `adapter_config.json`.

        Raises:
            PromptError: If the directory holds anything but a saved prompt.
        """
        return self._write(Path(directory))

    def _write(self, path: Path, repository: str | None = None) -> Path:
        """As `save`, with a card for a repository of the hub."""
        tensors = self.weights or {storage.EMBEDDINGS: self.embeddings_PH}
        peft = self._peft_config() if self.not_peft is None else None
        storage.write(path, tensors, self._own_config(), peft, self.not_peft or _LEADS, repository)
        return path

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        base_name: str | None = None,
    ) -> str:
        """Uploads what `save` writes, in place of the prompt that the repository held.

        Args:
            repo_id: `user/name`; the repository is made where there is none.
            commit_message: The commit's; None: "Upload soft prompt".
            private: Whether a new repository is private; None: as the account has it.
            token: The hub's token; None or True: the one that was saved by logging in, or HF_TOKEN.
            revision: The branch, made where there is none; None: main.
            base_name: The base model's name on the hub, for a prompt that was tuned on a copy in a directory.

        Returns:
            The commit's address.

        Raises:
            PromptError: If the hub cannot be asked or does not allow it.
        """
        hub.require_repository(repo_id)
        prompt = self if base_name is None else dataclasses.replace(self, base_name=base_name)
        if prompt.base_name and Path(prompt.base_name).exists():
            _log.warning(f"{prompt.base_name} is a directory of this machine: name the base on the hub with base_name=")
        with tempfile.TemporaryDirectory() as folder:
            directory = prompt._write(Path(folder) / "prompt", repo_id)
            return hub.upload(
                directory, repo_id, commit_message=commit_message, private=private, token=token, revision=revision
            )

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None
    ) -> "SoftPrompt":
        """Reads a prompt's directory as `load` does, or a prompt on the hub.

        Args:
            name_or_path: A directory, which always wins, or `user/name` or `user/name@revision` on the hub.
            revision: Branch, tag or commit on the hub; not used for a directory.
            token: The hub's token; None or True: the one that was saved by logging in, or HF_TOKEN; False: none.

        Raises:
            PromptError: As `load`, and if the hub cannot be asked or does not show it.
        """
        return cls.load(hub.located(name_or_path, revision, token))

    @classmethod
    def load(cls, directory: str | Path) -> "SoftPrompt":
        """Reads a prompt's directory, saved by ptuning, or by PEFT for prompt tuning or P-tuning; or a run's directory.

        Raises:
            PromptError: If it is missing, truncated or of another kind.
        """
        tensors, known = storage.read(Path(directory))
        try:
            if storage.EMBEDDINGS in tensors:
                return cls(tensors[storage.EMBEDDINGS], **known)
            name = known.get("encoder", {}).get("name", _DEFAULT_ENCODER)
            return cls(encoders.of_weights(name, tensors).base_PH, **known, weights=tensors)
        except PromptError as error:
            raise PromptError(f"{directory}: {error.received}", error.expected, error.remedy) from error

    def _own_config(self) -> dict[str, Any]:
        return {
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
            **({"verdict": dict(self.verdict)} if self.verdict else {}),
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
            "num_attention_heads": architecture.get("num_attention_heads") or 1,  # PEFT requires it but does not use it
            "num_layers": architecture.get("num_hidden_layers"),
            "prompt_tuning_init": "RANDOM",
        }


def _finite(tensor: Tensor) -> Tensor:
    """An fp32 copy; raises `PromptError` for a tensor of other numbers, and for one with NaN or infinity in fp32."""
    kind = f"{tensor.dtype}".removeprefix("torch.")
    if tensor.dtype not in storage.PRECISIONS:
        raise PromptError(f"a prompt of {kind} numbers", "floating-point numbers", "Save it again")
    plain = storage.plain(tensor)
    if not plain.isfinite().all():
        raise PromptError("a prompt with NaN or infinity in it", "finite numbers", "Train it again at a lower rate")
    return plain
