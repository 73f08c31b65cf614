"""Which virtual tokens matter: how the loss changes when one of them is replaced.

Knows nothing of what they decode to; only its chart names them by their nearest tokens.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ptuning.data import Row
from ptuning.errors import PromptError
from ptuning.evaluation import Bar, Bars, Resampled, Scores, Table, score_rows
from ptuning.forward import ReadOptions
from ptuning.inspection.measures import nearest_tokens
from ptuning.inspection.measures.protocol import Measured, Subject
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.inspection.vocabulary.origin import untrained
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt

NAME = "importance"
MOST_ROWS = 32  # rows that are read for each replacement
_MOST_LINES = 5  # that a terminal shows
_CHANGES = {
    "mean": "the virtual token is replaced by the mean of the others; None where it is the only one",
    "init": "it is replaced by its embedding before training; None where that is not known",
    "random": "it is replaced by a random ordinary token: the control",
}
_ENDS = {
    "": "mean change of a row's loss, in nats",
    "_low": "lower end of its 95 % interval",
    "_high": "upper end of its 95 % interval",
}
COLUMNS = {
    "position": "the virtual token's place in the prompt, from 0",
    **{f"{name}{end}": f"{what}: {which}" for name, what in _CHANGES.items() for end, which in _ENDS.items()},
}


def measure(subject: Subject, earlier: Mapping[str, Measured]) -> Measured | None:
    """Measures the prompt on its rows; None without rows, and for a conditioned prompt."""
    if subject.rows is None or subject.prompt.is_conditioned:
        return None
    table = importance(
        subject.prompt,
        subject.backbone,
        subject.rows,
        subject.seed,
        subject.options,
        vocabulary=subject.vocabulary,
    )
    tokens = [record["token"] for record in nearest_tokens.nearest(earlier[nearest_tokens.NAME].table)]
    return measured(table, tokens)


def measured(table: Table, tokens: Sequence[str]) -> Measured:
    """Importances with their chart; `tokens` are the nearest tokens of the virtual tokens."""
    name, by = ("random", "a random token") if table[0]["mean"] is None else ("mean", "the mean of the others")
    bars = [
        Bar(
            labels=[f"{record['position']} {token!r}"],
            value=record[name],
            low=record[f"{name}_low"],
            high=record[f"{name}_high"],
            is_marked=record[f"{name}_low"] > 0,
        )
        for record, token in zip(table, tokens, strict=True)
    ]
    control = sum(table.column("random")) / len(table)
    how = (
        f"How much the loss of a row rises when a virtual token is replaced by {by}; lines are 95 % intervals, and "
        "bars whose interval is above 0 are dark. The control, a random token in its place, raises the loss by "
        f"{control:.3f} on average."
    )
    chart = Bars("change of the loss when replaced", bars)
    return Measured(
        name=NAME, title="Which virtual tokens matter", how=how, table=table, chart=chart, lines=_lines(bars, by)
    )


def _lines(bars: Sequence[Bar], by: str) -> list[str]:
    """The virtual tokens that matter most, a line each."""
    most = sorted(bars, key=lambda bar: -bar.value)[:_MOST_LINES]
    found = [f"  {bar.labels[0]:<24}{bar.value:+.3f} ({bar.low:+.3f} to {bar.high:+.3f})" for bar in most]
    return [f"what a row's loss rises by when {by} replaces a virtual token; the most, with its nearest token:", *found]


@torch.no_grad()
def importance(
    prompt: SoftPrompt,
    backbone: Backbone,
    rows: Sequence[Row],
    seed: int = 0,
    options: ReadOptions = ReadOptions(),
    vocabulary: Vocabulary | None = None,
) -> Table:
    """Replaces one virtual token at a time and measures how the loss changes.

    Args:
        prompt: The prompt, the same for all rows.
        backbone: The base model.
        rows: Rows with answers; 32 random ones are read.
        seed: Seed of the chosen rows, the random tokens and the bootstrap.
        options: How rows are read.
        vocabulary: The base model's vocabulary; None: it is made.

    Returns:
        A record for each virtual token; `COLUMNS` says what it holds. Where no change exceeds the control's interval,
        the rows do not show which token matters.

    Raises:
        PromptError: For a conditioned prompt, or one without a task.
    """
    if prompt.is_conditioned:
        raise PromptError("importance of a conditioned prompt", "one that is the same for all rows", "Leave it out")
    if prompt.task is None:
        raise PromptError("importance of a prompt without a task", "one with a template", "Leave it out")
    coder = backbone.coder(prompt.task)
    examples = coder.encode(random.Random(seed).sample(list(rows), min(MOST_ROWS, len(rows))))
    prompt_PH = prompt.embeddings_PH.to(backbone.device)

    def scores(tensor_PH: Tensor, name: str) -> Scores:
        return Scores.one(score_rows(backbone, tensor_PH, examples, coder.label_ids, options, name))

    whole, records = scores(prompt_PH, "importance"), list[dict[str, Any]]()
    for p, others in enumerate(_replacements(prompt, backbone, vocabulary or Vocabulary.of(backbone), seed)):
        record = dict.fromkeys(COLUMNS) | {"position": p}
        for name, row_H in others.items():
            changed_PH = prompt_PH.clone()
            changed_PH[p] = row_H
            both = Resampled(
                {"whole": whole, "changed": scores(changed_PH, f"importance, token {p + 1} of {len(prompt_PH)}")}, seed
            )
            change = both.gain("whole", "changed", "loss")
            record |= {name: change.value, f"{name}_low": change.low, f"{name}_high": change.high}
        records.append(record)
    return Table(COLUMNS, records)


def _replacements(prompt: SoftPrompt, backbone: Backbone, vocabulary: Vocabulary, seed: int) -> list[dict[str, Tensor]]:
    """For each virtual token the embeddings that replace it."""
    prompt_PH, start_PH = prompt.embeddings_PH.to(backbone.device), untrained(prompt, backbone, vocabulary)
    drawn_PH = vocabulary.rows(random.Random(seed).choices(vocabulary.plain_ids, k=len(prompt_PH)))
    found = []
    for p in range(len(prompt_PH)):
        others = {"random": drawn_PH[p]}
        if len(prompt_PH) > 1:
            others["mean"] = (prompt_PH.sum(dim=0) - prompt_PH[p]) / (len(prompt_PH) - 1)
        if start_PH is not None:
            others["init"] = start_PH[p]
        found.append(others)
    return found
