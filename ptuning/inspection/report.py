"""The whole inspection of a prompt: verdict, decoding, ladder, geometry, importance, atoms, trajectory.

Knows nothing of how any of it is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning.data import as_row
from ptuning.errors import PromptError
from ptuning.evaluation import Table
from ptuning.forward import ReadOptions, as_batch_prompt
from ptuning.inspection.measures.geometry import Geometry, cloud, geometry
from ptuning.inspection.measures.importance import importance
from ptuning.inspection.measures.ladder import Ladder, initial_ids, ladder
from ptuning.inspection.measures.nearest_tokens import FIDELITY_NOTE, Metric, decode
from ptuning.inspection.measures.token_sums import sparse
from ptuning.inspection.measures.trajectory import trajectory
from ptuning.inspection.verdict import Thresholds, Verdict, judge
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt

_BASE_NOTE = (
    "This is the base of a conditioned prompt; each row's own is the base and what was read of the row, and is shown "
    f"where a row is given. {FIDELITY_NOTE}"
)


@dataclass(frozen=True)
class Report:
    """What a prompt says, and how much of it may be believed."""

    verdict: Verdict
    """The answer."""
    decoding: Table
    """Nearest tokens; `decode.COLUMNS`."""
    geometry: Geometry
    """Where the prompt lies."""
    atoms: Table
    """Virtual tokens as sums of tokens; `sparse.COLUMNS`."""
    ladder: Ladder | None = None
    """What the prompt and its stand-ins do; None without rows."""
    importance: Table | None = None
    """Which virtual tokens matter; None without rows."""
    trajectory: Table | None = None
    """How the prompt moved; None where its run is not at hand."""
    row: Mapping[str, str] | None = None
    """The row whose own prompt this is; None for a prompt that is the same for all rows, or for the base of one."""
    metric: Metric = "cosine"
    """What near means in `decoding`."""
    note: str = FIDELITY_NOTE
    """What a decoding can and cannot say."""
    cloud: Mapping[str, Any] = field(default_factory=dict)
    """Random tokens, the prompt and where it began in a plane; `geometry.cloud`."""

    @property
    def num_virtual_tokens(self) -> int:
        """P."""
        return len(self.geometry.table)

    @property
    def neighbours(self) -> list[list[Mapping[str, Any]]]:
        """The decoding's records of each virtual token, the nearest first."""
        return [list(records) for _, records in groupby(self.decoding, key=itemgetter("position"))]

    @property
    def nearest(self) -> list[Mapping[str, Any]]:
        """The record of each virtual token's nearest token."""
        return [records[0] for records in self.neighbours]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        tables = {name: getattr(self, name) for name in ("decoding", "atoms", "importance", "trajectory")}
        return {
            "verdict": self.verdict.as_dict(),
            "metric": self.metric,
            "note": self.note,
            "row": self.row and dict(self.row),
            "geometry": self.geometry.as_dict(),
            "ladder": self.ladder and self.ladder.as_dict(),
            **{name: each and each.as_dict() for name, each in tables.items()},
        }


@torch.no_grad()
def inspect(
    prompt: SoftPrompt,
    backbone: Backbone,
    rows: Sequence[Mapping[str, Any]] | None = None,
    *,
    k: int = 5,
    metric: Metric = "cosine",
    row: Mapping[str, Any] | None = None,
    human: str | None = None,
    run: str | Path | None = None,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    options: ReadOptions = ReadOptions(),
) -> Report:
    """Says what a prompt decodes to, and how much of that can be believed.

    Args:
        prompt: The prompt.
        backbone: The base model it was tuned on; without rows only its embeddings and tokenizer are used.
        rows: Rows with answers, on which the verdict rests; None: nothing is judged.
        k: Neighbours a virtual token.
        metric: What near means: cosine, centred_cosine, l2, csls; a conditioned prompt's rows, which are each decoded
            by themselves to be measured, are always decoded by cosine.
        row: For a conditioned prompt the template's columns, to see what it makes of that row; None: its base.
        human: A person's prompt to measure beside it.
        run: The training run's directory, to follow the prompt's way.
        thresholds: Where one verdict ends and the next begins.
        seed: Of random vectors, random prompts and the bootstrap.
        options: How rows are read.

    Raises:
        PromptError: When the widths differ, `k` is not between 1 and the vocabulary's size, a row is given to a prompt
            that does not read it, or `run` is not the directory of such a prompt's run.
    """
    vocabulary, init_ids = Vocabulary.of(backbone), initial_ids(prompt, backbone)
    (prompt_PH, note), way = _shown(prompt, backbone, row), _followed(run, vocabulary, prompt.num_virtual_tokens)
    decoding = decode(prompt_PH, vocabulary, init_ids, k, metric, seed=seed)
    first = [record for record in decoding if record["rank"] == 1]
    measured, weights = None, None
    if rows is not None:
        named = _named(prompt, rows)
        measured = ladder(
            prompt, backbone, named, [record["id"] for record in first], human, seed=seed, options=options
        )
        weights = None if prompt.is_conditioned else importance(prompt, backbone, named, seed, options)
    share_init = sum(record["is_init"] for record in first) / len(first)
    if measured is not None and measured.share_init is not None:
        share_init = measured.share_init
    return Report(
        judge(None if measured is None else measured.scores, share_init, thresholds),
        decoding,
        geometry(prompt_PH, vocabulary, init_ids),
        sparse(prompt_PH, vocabulary, seed=seed),
        measured,
        weights,
        way,
        row and dict(row),
        metric,
        note,
        cloud(prompt_PH, vocabulary, init_ids),
    )


def _named(prompt: SoftPrompt, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Rows of the prompt's task."""
    if prompt.task is None:
        raise PromptError("rows for a prompt without a task", "no rows", "Leave them out")
    return [as_row(each, f"row {i}", prompt.task.columns) for i, each in enumerate(rows)]


def _followed(run: str | Path | None, vocabulary: Vocabulary, num_virtual_tokens: int) -> Table | None:
    """A run's trajectory."""
    if run is None:
        return None
    found = trajectory(run, vocabulary)
    if not found:
        raise PromptError(f"{run}, which holds no snapshots", "a training run's directory", "Correct it")
    if len(found[0]["ids"]) != num_virtual_tokens:
        own = f"a run of {len(found[0]['ids'])} virtual tokens"
        raise PromptError(own, f"the prompt's {num_virtual_tokens}", "Give its own run")
    return found


def _shown(prompt: SoftPrompt, backbone: Backbone, row: Mapping[str, Any] | None) -> tuple[Tensor, str]:
    """The prompt that is looked at, and what must be said of it."""
    if row is not None:
        return prompt_of_row(prompt, backbone, row), FIDELITY_NOTE
    return prompt.embeddings_PH.to(backbone.device), _BASE_NOTE if prompt.is_conditioned else FIDELITY_NOTE


def prompt_of_row(prompt: SoftPrompt, backbone: Backbone, row: Mapping[str, Any]) -> Tensor:
    """What a conditioned prompt makes of a row: `[P, H]`; raises `PromptError` for another prompt."""
    if not prompt.is_conditioned or prompt.task is None:
        raise PromptError("a row for a prompt that is the same for every row", "no row", "Leave it out")
    coder = backbone.coder(prompt.task)
    batch = backbone.collate(coder.encode_questions([as_row(row, "the row", coder.columns)])).to(backbone.device)
    return as_batch_prompt(prompt.on(backbone.device)).embeddings(backbone, batch)[0]
