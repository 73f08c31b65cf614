"""The whole inspection of a prompt: makes the measures, judges, and gives a report that shows itself.

Knows nothing of single measures except what the verdict rests on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning.data import Row, Rows, as_row, rows_of
from ptuning.errors import PromptError
from ptuning.forward import ReadOptions, as_batch_prompt
from ptuning.inspection.contents import Contents
from ptuning.inspection.measures import nearest_tokens
from ptuning.inspection.measures.catalogue import MEASURES
from ptuning.inspection.measures.ladder import NAME as LADDER
from ptuning.inspection.measures.ladder import Ladder
from ptuning.inspection.measures.nearest_tokens import FIDELITY_NOTE
from ptuning.inspection.measures.protocol import Measured, Subject
from ptuning.inspection.page import page, write_page
from ptuning.inspection.provenance import provenance
from ptuning.inspection.terminal import lines
from ptuning.inspection.verdict import NOT_JUDGED, Thresholds, Verdict, judge
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.inspection.vocabulary.neighbours import Metric
from ptuning.inspection.vocabulary.origin import initial_ids
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt

_BASE_NOTE = (
    "This is the base of a conditioned prompt. The prompt of a row is the base plus what the encoder reads in the row; "
    f"give a row to see it. {FIDELITY_NOTE}"
)


class Report(Contents):
    """An inspection that shows itself: as lines (`print`), as a page, in a notebook."""

    def __str__(self) -> str:
        return "\n".join(lines(self))

    def save_html(self, path: str | Path, name: str = "soft prompt") -> Path:
        """Writes the page that `ptuning inspect --html` writes, in place of an older one.

        Args:
            path: The file.
            name: What the prompt is called on the page.
        """
        return write_page(self, path, name)

    def recorded_in(self, prompt: SoftPrompt) -> SoftPrompt:
        """The prompt with this verdict, which its model card tells once it is saved or pushed.

        Raises:
            PromptError: If nothing was judged, for want of rows.
        """
        if self.verdict.word == NOT_JUDGED:
            raise PromptError(f"a verdict to record: {self.verdict.sentence}", "a judged prompt", "Give more rows")
        told = {"word": self.verdict.word, "sentence": self.verdict.sentence, "effect": self.verdict.effect}
        return replace(prompt, verdict={**told, "judged_on": self.provenance.get("judged on")})

    def _repr_html_(self) -> str:
        """The page in a frame of its own, for a notebook."""
        frame = "width:100%;height:48rem;border:0"
        return f'<iframe title="inspection" style="{frame}" srcdoc="{escape(page(self), quote=True)}"></iframe>'


@torch.no_grad()
def inspect(
    prompt: SoftPrompt,
    backbone: Backbone,
    rows: Rows | None = None,
    *,
    k: int = 5,
    metric: Metric = "cosine",
    row: Mapping[str, Any] | None = None,
    human: str | None = None,
    run: str | Path | None = None,
    require_run: bool = True,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    options: ReadOptions = ReadOptions(),
    source: str | None = None,
) -> Report:
    """Says what a prompt decodes to, and how far that can be believed.

    Args:
        prompt: The prompt.
        backbone: The base model that it was tuned on; without rows only its embeddings and tokenizer are used.
        rows: Rows with answers, as in `PromptedLM.log_probs`, on which the verdict rests; None: nothing is judged.
        k: Neighbours of each virtual token.
        metric: How distance to tokens is measured: cosine, centred_cosine, l2, csls. The rows of a conditioned prompt
            are always decoded by cosine.
        row: For a conditioned prompt the columns of its template, to decode the prompt that it makes for this row;
            None: its base is decoded.
        human: A person's prompt to score beside it.
        run: The training run's directory, to follow the prompt through training.
        require_run: Whether a run that cannot be followed is an error; False: a warning, and no trajectory.
        thresholds: Where one verdict ends and the next begins.
        seed: Seed of the random vectors, the random prompts and the bootstrap.
        options: How rows are read.
        source: Where the rows come from, to be told in the report.

    Raises:
        PromptError: When the widths differ, `k` is not between 1 and the vocabulary's size, a row is given for a prompt
            that does not read rows, or `run` is not the directory of this prompt's run.
        TrainingError: When a snapshot of `run` is broken.
    """
    vocabulary = Vocabulary.of(backbone)
    shown_PH, note = _shown(prompt, backbone, row)
    subject = Subject(
        prompt=prompt,
        backbone=backbone,
        vocabulary=vocabulary,
        shown_PH=shown_PH,
        init_ids=initial_ids(prompt, backbone, vocabulary),
        rows=None if rows is None else _named(prompt, rows),
        human=human,
        run=None if run is None else Path(run),
        require_run=require_run,
        k=k,
        metric=metric,
        seed=seed,
        options=options,
    )
    measures = _measures(subject, MEASURES)
    return Report(
        verdict=_verdict(measures, thresholds),
        measures=measures,
        num_rows=None if subject.rows is None else len(subject.rows),
        row=row and dict(row),
        metric=metric,
        note=note,
        provenance=provenance(prompt, None if subject.rows is None else len(subject.rows), source),
    )


@torch.no_grad()
def verdict_of(
    prompt: SoftPrompt, backbone: Backbone, rows: Rows, *, seed: int = 0, options: ReadOptions = ReadOptions()
) -> Verdict:
    """The verdict of `inspect` alone, without the measures that it does not rest on; arguments and errors as there."""
    vocabulary = Vocabulary.of(backbone)
    subject = Subject(
        prompt=prompt,
        backbone=backbone,
        vocabulary=vocabulary,
        shown_PH=_shown(prompt, backbone, None)[0],
        init_ids=initial_ids(prompt, backbone, vocabulary),
        rows=_named(prompt, rows),
        seed=seed,
        options=options,
    )
    return _verdict(_measures(subject, (nearest_tokens.NAME, LADDER)), None)


def _measures(subject: Subject, names: Iterable[str]) -> dict[str, Measured]:
    """Makes some measures, in their order."""
    measures = dict[str, Measured]()
    for name in names:
        found = MEASURES[name](subject, measures)
        if found is not None:
            measures[name] = found
    return measures


def _verdict(measures: Mapping[str, Measured], thresholds: Thresholds | None) -> Verdict:
    """Judges by the ladder and by the share of virtual tokens that decode to their initial token."""
    nearest, ladder = nearest_tokens.nearest(measures[nearest_tokens.NAME].table), measures.get(LADDER)
    share_init = sum(record["is_init"] for record in nearest) / len(nearest)
    if not isinstance(ladder, Ladder):
        return judge(None, share_init, thresholds)
    return judge(ladder.scores, share_init if ladder.share_init is None else ladder.share_init, thresholds)


def _named(prompt: SoftPrompt, rows: Rows) -> list[Row]:
    """Rows of the prompt's task, with names for error messages."""
    if prompt.task is None:
        raise PromptError("rows for a prompt without a task", "no rows", "Leave them out")
    return rows_of(rows, "row", prompt.task.columns)


def _shown(prompt: SoftPrompt, backbone: Backbone, row: Mapping[str, Any] | None) -> tuple[Tensor, str]:
    """The embeddings that are decoded, and the note for their reader."""
    if row is not None:
        return prompt_of_row(prompt, backbone, row), FIDELITY_NOTE
    return prompt.embeddings_PH.to(backbone.device), _BASE_NOTE if prompt.is_conditioned else FIDELITY_NOTE


def prompt_of_row(prompt: SoftPrompt, backbone: Backbone, row: Mapping[str, Any]) -> Tensor:
    """The prompt that a conditioned prompt makes for a row, `[P, H]`; raises `PromptError` for another prompt."""
    if not prompt.is_conditioned or prompt.task is None:
        raise PromptError("a row for a prompt that is the same for every row", "no row", "Leave it out")
    coder = backbone.coder(prompt.task)
    batch = backbone.collate(coder.encode_questions([as_row(row, "the row", coder.columns)])).to(backbone.device)
    return as_batch_prompt(prompt.on(backbone.device)).embeddings(backbone, batch)[0]
