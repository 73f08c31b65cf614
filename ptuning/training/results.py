"""What comes out of a run: the trained prompt, what it was measured at, and how it was made.

Knows nothing of steps, checkpoints or files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptuning.config import RunConfig
from ptuning.data import num_cut
from ptuning.prompts import PromptEncoder, SoftPrompt, initializers
from ptuning.training.inputs import Inputs
from ptuning.training.loop import Loop
from ptuning.training.validation import Best


@dataclass(frozen=True)
class TrainResult:
    """What a run gives."""

    prompt: SoftPrompt
    """The tuned prompt: the best checkpoint's where there are validation rows, else the last step's."""
    directory: Path
    """The saved prompt's directory."""
    metrics: dict[str, Any]
    """What metrics.json holds."""


def soft_prompt_of(
    encoder: PromptEncoder,
    config: RunConfig,
    inputs: Inputs,
    loop: Loop,
    best: Best,
    results: Mapping[str, Mapping[str, Any]],
) -> SoftPrompt:
    """The prompt with all that is known of it.

    Args:
        encoder: The trained prompt encoder.
        config: The run's.
        inputs: What it was trained with.
        loop: What trained it.
        best: The best step, where there were validation rows.
        results: Name -> what was measured.
    """
    init = {"kind": config.prompt.init, "text": config.prompt.init_text, "prompt": config.prompt.init_prompt}
    token_ids = initializers.ids_of(inputs.backbone.vocabulary_VH, inputs.start_PH)
    return SoftPrompt(
        encoder.base_PH,
        config.data.task,
        inputs.backbone.name,
        inputs.backbone.fingerprint,
        revision=config.model.revision,
        task_type=inputs.backbone.task_type,
        weights=encoder.state_dict() if encoder.reads_text else {},
        encoder={"name": config.prompt.encoder, "hidden_size": config.prompt.hidden_size},
        init={**init, "token_ids": token_ids},
        training={
            "steps": loop.progress.step,
            "best_step": best.step or loop.progress.step,
            "seconds": round(loop.progress.seconds, 1),
            "data": {split: getattr(config.data, split) for split in inputs.examples},
            "rows": len(inputs.examples["train"]),
            "rows_cut": num_cut(inputs.examples["train"]),
            "trainable_parameters": sum(each.numel() for each in encoder.parameters()),
            "dtype": str(inputs.backbone.dtype).removeprefix("torch."),
            "quantization": config.model.quantization,
            "seed": config.train.seed,
            "learning_rate": loop.settings.learning_rate,
        },
        results=results,
    )
