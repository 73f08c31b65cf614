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
from ptuning.training.start import init_kind
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
    split: str | None,
    results: Mapping[str, Mapping[str, Any]],
) -> SoftPrompt:
    """The prompt with all that is known of it.

    Args:
        encoder: The trained prompt encoder.
        config: The run's.
        inputs: What it was trained with.
        loop: What trained it.
        best: The best step, where there were validation rows.
        split: The rows that the results are of; None where there are none.
        results: Name -> what was measured.
    """
    init = {"kind": init_kind(config), "text": config.prompt.init_text, "prompt": config.prompt.init_prompt}
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
            "best_step": best.step if best.is_known else loop.progress.step,
            "seconds": round(loop.progress.seconds, 1),
            "data": dict(inputs.sources),
            "rows": len(inputs.examples["train"]),
            "validation_rows": len(inputs.examples.get("validation", ())),
            "results_of": told_of_results(split, inputs) if split else "no rows",
            "rows_cut": num_cut(inputs.examples["train"]),
            "trainable_parameters": sum(each.numel() for each in encoder.parameters()),
            "dtype": str(inputs.backbone.dtype).removeprefix("torch."),
            "quantization": config.model.quantization,
            "seed": config.train.seed,
            "learning_rate": loop.settings.learning_rate,
        },
        results=results,
    )


def told_of_results(split: str, inputs: Inputs) -> str:
    """Which rows the results are of, and whether they are for that reason too good."""
    if split != "validation":
        return f"{split} rows"
    told = "validation rows" if inputs.has_own_validation else "validation rows set aside from the training rows"
    return f"{told}, which also chose the checkpoint"
