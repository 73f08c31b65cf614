"""Rows that a teacher answered, with what it said, kept in a directory so that the teacher runs once.

Knows nothing of how a teacher works.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ptuning.data import Row
from ptuning.errors import TrainingError
from ptuning.files import whole_file
from ptuning.training import SoftTargets


@dataclass(frozen=True)
class Taught:
    """Rows with the teacher's answers, and what it says at them."""

    rows: Sequence[Row]
    """The rows."""
    targets: SoftTargets
    """What the teacher says at each token of their answers."""


def kept(path: Path, made_with: str, rows: Sequence[Row], column: str, make: Callable[[], Taught]) -> Taught:
    """What a file holds; where there is none, what is made now and written there.

    Args:
        path: The file.
        made_with: A digest of all that it follows from.
        rows: The rows that the teacher reads.
        column: The column of its answers.
        make: Asks the teacher.

    Raises:
        TrainingError: For a file that is broken or was made with something else.
    """
    if not path.exists():
        taught = make()
        _write(path, made_with, taught, column)
        return taught
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("ids_NK", "log_probs_NK")}
            about: Mapping[str, str] = file.metadata()
        if about["made_with"] != made_with:
            raise TrainingError(
                f"{path} was made with another text, base, rows or settings",
                "the same as the distillation was begun with",
                "Set them back, or choose another train.output_dir",
            )
        answers, lengths = json.loads(about["answers"]), json.loads(about["lengths"])
        targets = SoftTargets(tensors["ids_NK"].long(), tensors["log_probs_NK"], tuple(lengths))
        pairs = zip(rows, answers, strict=True)
        taught = Taught([Row({**row.values, column: answer}, row.where) for row, answer in pairs], targets)
        if len(lengths) != len(rows) or sum(lengths) != len(targets.ids_NK):
            raise ValueError("other rows")
    except TrainingError:
        raise
    except Exception as error:  # whatever a broken file leads to
        remedy = f"Remove {path}, and the teacher is asked again"
        raise TrainingError(f"{path} is broken ({error})", "what the teacher said", remedy) from error
    return taught


def _write(path: Path, made_with: str, taught: Taught, column: str) -> None:
    targets = taught.targets
    tensors = {"ids_NK": targets.ids_NK.to(torch.int32), "log_probs_NK": targets.log_probs_NK}
    answers = json.dumps([row.values[column] for row in taught.rows])
    with whole_file(path) as beside:
        about = {"made_with": made_with, "answers": answers, "lengths": json.dumps(targets.lengths)}
        save_file(tensors, beside, about)
