"""How a prompt moved while it was trained, from the snapshots that a run keeps.

Knows nothing of what the prompt does except the losses that the run logged.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange

from ptuning.errors import PromptError, PTuningError
from ptuning.evaluation import Curves, Table
from ptuning.inspection.measures.protocol import Measured, Subject
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.inspection.vocabulary.neighbours import top
from ptuning.training import RunDirectory

_log = logging.getLogger(__name__)

NAME = "trajectory"
_CURVES = {
    "drift": "distance",
    "cosine": "cosine",
    "norm": "norm",
    "num_flips": "decode flips",
    "loss": "training loss",
    "eval_loss": "validation loss",
}  # column -> the name of its curve
COLUMNS = {
    "step": "training steps so far",
    "drift": "mean Euclidean distance of the virtual tokens from where they began",
    "cosine": "their mean cosine with where they began",
    "norm": "their mean norm",
    "num_flips": "virtual tokens whose nearest token differs from the previous snapshot",
    "num_init": "virtual tokens whose nearest token is the same as at the first snapshot",
    "ids": "ids of the nearest tokens",
    "loss": "the training loss that the run logged at this step; None where it logged none",
    "eval_loss": "the same for the validation loss",
}


def measure(subject: Subject, earlier: Mapping[str, Measured]) -> Measured | None:
    """Follows the prompt through its run; None without a run, or where a run that is not required is unusable."""
    if subject.run is None:
        return None
    try:
        table = trajectory(subject.run, subject.vocabulary)
        _require_own(table, subject.run, subject.prompt.num_virtual_tokens)
    except PTuningError as error:
        if subject.require_run:
            raise
        _log.warning("no trajectory: %s", error)
        return None
    return measured(table)


def measured(table: Table) -> Measured:
    """A trajectory with its curves."""
    how = (
        "The prompt through its training: mean distance from its start and mean cosine with it, its norm, how many "
        "virtual tokens decode otherwise than at the previous snapshot, and the losses that the run logged."
    )
    columns = [(shown, table.column(name)) for name, shown in _CURVES.items()]
    series = [(shown, values) for shown, values in columns if any(each is not None for each in values)]
    chart = Curves("trajectory", table.column("step"), series) if len(table) > 1 else None
    return Measured(name=NAME, title="How it got there", how=how, table=table, chart=chart)


def _require_own(table: Table, run: Path, num_virtual_tokens: int) -> None:
    """Raises `PromptError` where the run kept nothing, or is that of a prompt of another length."""
    if not table:
        raise PromptError(f"{run}, which holds no snapshots", "a training run's directory", "Correct it")
    num_own = len(table[0]["ids"])
    if num_own != num_virtual_tokens:
        raise PromptError(
            f"a run of {num_own} virtual tokens", f"the prompt's {num_virtual_tokens}", "Give its own run"
        )


@torch.no_grad()
def trajectory(run: str | Path, vocabulary: Vocabulary) -> Table:
    """Follows a prompt through its run.

    Args:
        run: The run's directory.
        vocabulary: The base model's vocabulary.

    Returns:
        A record for each snapshot, the first at step 0; `COLUMNS` says what it holds. No records where the run kept no
        snapshots.

    Raises:
        PromptError: When the prompts have another width than the vocabulary.
        TrainingError: When a snapshot is broken.
    """
    directory = RunDirectory(run)
    snapshots, (train_loss, eval_loss) = directory.snapshots(), _losses(directory)
    if not snapshots:
        return Table(COLUMNS, [])
    widths = {each.shape[-1] for each in snapshots.values()}
    if widths != {vocabulary.width}:
        raise PromptError(
            f"a run of prompts of width {min(widths)}", f"the base's width {vocabulary.width}", "Give its own run"
        )
    all_PH = torch.cat(list(snapshots.values())).to(vocabulary.device)
    ids_of = rearrange(top(all_PH, vocabulary, 1)[1], "(n p) 1 -> n p", n=len(snapshots)).tolist()
    records: list[dict[str, Any]] = []
    start_PH, first_ids, last_ids = None, list[int](), list[int]()
    for (step, prompt_PH), ids in zip(snapshots.items(), ids_of, strict=True):
        if start_PH is None:
            start_PH, first_ids, last_ids = prompt_PH, ids, ids
        records.append(
            {
                "step": step,
                "drift": float((prompt_PH - start_PH).norm(dim=1).mean()),
                "cosine": float(torch.cosine_similarity(prompt_PH, start_PH, dim=1).mean()),
                "norm": float(prompt_PH.norm(dim=1).mean()),
                "num_flips": _num_other(ids, last_ids),
                "num_init": len(ids) - _num_other(ids, first_ids),
                "ids": ids,
                "loss": train_loss.get(step),
                "eval_loss": eval_loss.get(step),
            }
        )
        last_ids = ids
    return Table(COLUMNS, records)


def _num_other(ids: list[int], others: list[int]) -> int:
    return sum(one != other for one, other in zip(ids, others, strict=True))


def _losses(directory: RunDirectory) -> tuple[dict[int, float], dict[int, float]]:
    """Step -> training loss, and step -> validation loss, of the steps for which the run logged one."""
    records = directory.read_log()
    train_loss = {each["step"]: each["loss"] for each in records if "loss" in each}
    return train_loss, {each["step"]: each["eval_loss"] for each in records if "eval_loss" in each}
