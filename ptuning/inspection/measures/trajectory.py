"""How a prompt moved while it was trained, from the snapshots that a run keeps.

Knows nothing of what it does but the loss that the run wrote down.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ptuning.errors import PromptError
from ptuning.evaluation import Table
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.inspection.vocabulary.neighbours import top
from ptuning.training import RunDirectory

COLUMNS = {
    "step": "training steps so far",
    "drift": "mean Euclidean distance of the virtual tokens from where they began",
    "cosine": "their mean cosine with where they began",
    "norm": "their mean norm",
    "num_flips": "virtual tokens whose nearest token is another than at the snapshot before",
    "num_init": "virtual tokens whose nearest token is the one at the first snapshot",
    "ids": "the nearest tokens",
    "loss": "the training loss that the run wrote down at that step; None where it did not",
    "eval_loss": "the validation loss, likewise",
}


@torch.no_grad()
def trajectory(run: str | Path, vocabulary: Vocabulary) -> Table:
    """Follows a prompt through its run.

    Args:
        run: The run's directory.
        vocabulary: The base model's.

    Returns:
        A record for each snapshot, the first at step 0 where the run began with this version; `COLUMNS` says what they
        hold. No records where the run kept none.

    Raises:
        PromptError: When the prompts have another width than the vocabulary.
        TrainingError: When a snapshot is broken.
    """
    directory = RunDirectory(run)
    snapshots, losses = directory.snapshots(), _losses(directory.log)
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
        values = (
            *(step, *_moved(prompt_PH, start_PH), float(prompt_PH.norm(dim=1).mean())),
            *(_num_other(ids, last_ids), len(ids) - _num_other(ids, first_ids), ids),
            *(of_step.get(step) for of_step in losses),
        )
        records.append(dict(zip(COLUMNS, values, strict=True)))
        last_ids = ids
    return Table(COLUMNS, records)


def _moved(prompt_PH: Tensor, start_PH: Tensor) -> tuple[float, float]:
    """Mean distance and mean cosine."""
    cosine_P = torch.cosine_similarity(prompt_PH, start_PH, dim=1)
    return float((prompt_PH - start_PH).norm(dim=1).mean()), float(cosine_P.mean())


def _num_other(ids: list[int], others: list[int]) -> int:
    return sum(one != other for one, other in zip(ids, others, strict=True))


def _losses(log: Path) -> tuple[dict[int, float], dict[int, float]]:
    """Training and validation loss of each step that the run wrote one down for."""
    records = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        with suppress(ValueError):  # a line that was cut off in writing
            records.append(json.loads(line))
    one, other = ({each["step"]: each[name] for each in records if name in each} for name in ("loss", "eval_loss"))
    return one, other
