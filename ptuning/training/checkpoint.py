"""What a checkpoint holds: the loop's state, the best step, and digests of what decides the steps besides settings.

Knows nothing of where checkpoints are written.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptuning.config import RunConfig
from ptuning.data import Example
from ptuning.errors import TrainingError
from ptuning.training.inputs import Inputs
from ptuning.training.loop import Loop
from ptuning.training.memory import TokenLimit
from ptuning.training.validation import Best


def checkpoint_of(loop: Loop, best: Best, limit: TokenLimit, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """All that a resumed run needs, as plain data and tensors."""
    state = loop.state_dict()
    progress = {
        **state["progress"],
        "best_step": best.step,
        "best_value": best.value,
        "lowest_loss": best.loss,
        "num_evaluations_without_improvement": best.num_evaluations_without_improvement,
        "max_batch_tokens": limit.found,
    }
    return {
        "encoder": state["module"],
        "optimizer": state["optimizer"],
        "schedule": state["schedule"],
        "progress": progress,
        "random": state["random"],
        "made_with": dict(made_with),
    }


def restore(checkpoint: Mapping[str, Any], loop: Loop, limit: TokenLimit) -> Best:
    """Brings a loop and the limit of its batches to where they were; gives the best step until then."""
    progress = dict(checkpoint["progress"])
    limit.go_on_from(progress.pop("max_batch_tokens", None))
    best = Best(
        step=progress.pop("best_step"),
        value=progress.pop("best_value"),
        loss=progress.pop("lowest_loss", math.inf),  # earlier versions did not keep it
        num_evaluations_without_improvement=progress.pop("num_evaluations_without_improvement"),
    )
    loop.load_state_dict(
        {
            "module": checkpoint["encoder"],
            "optimizer": checkpoint["optimizer"],
            "schedule": checkpoint["schedule"],
            "progress": progress,
            "random": checkpoint["random"],
        }
    )
    return best


def made_with(config: RunConfig, inputs: Inputs, num_processes: int) -> dict[str, Any]:
    """What decides the steps besides the settings, by content: files may move or be named by another path."""
    found = {
        "training rows": _digest(inputs.examples["train"]),
        "number of processes": num_processes,
        "weights or precision of the base model": inputs.weights_sha256,
    }
    if "validation" in inputs.examples:  # they choose the best checkpoint
        found["validation rows"] = _digest(inputs.examples["validation"])
    if inputs.soft_targets is not None:
        found["teacher"] = inputs.soft_targets.sha256
    if config.prompt.init == "prompt":
        found["initial prompt"] = hashlib.sha256(inputs.start_PH.float().cpu().numpy().tobytes()).hexdigest()
    return found


def require_same(checkpoint: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> None:
    """Raises `TrainingError` where a checkpoint was made with something else.

    Args:
        checkpoint: The checkpoint; what it has no digest of, because an older version wrote it, is not compared.
        now: What `made_with` gives.
        run: The directory of the run that is resumed.
    """
    saved = checkpoint["made_with"]
    changed = [what for what in saved if saved[what] != now.get(what)]
    if changed:
        raise TrainingError(
            f"--resume of {run} with other {' and '.join(changed)}",
            "what the run was started with",
            "Set it back, or start a new run",
        )


def _digest(examples: Sequence[Example]) -> str:
    rows = [[example.ids, example.answer_ids] for example in examples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
