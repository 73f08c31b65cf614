"""Reads rows with answers through a prompt, and scores each: with the prompt, and with the same words without it.

Knows nothing of training, files or the command line; `metrics` sums the scores up.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ptuning.data import Coder, Example, Row, Task, prefix_ids, warn_of_cut
from ptuning.evaluation.metrics import Metrics, RowScores
from ptuning.forward import (
    BatchPrompt,
    Prompt,
    ReadOptions,
    answer_log_probs,
    as_batch_prompt,
    label_log_probs,
    memory_explained,
)
from ptuning.model import Backbone

_log = logging.getLogger(__name__)

WITHOUT, WITH = "the same words, no soft prompt", "soft prompt"  # names of results


@dataclass(frozen=True)
class Evaluation:
    """What one side of an evaluation comes to."""

    metrics: Metrics
    """The metrics of all rows."""
    scores: RowScores
    """The scores of each row, in the rows' order."""
    num_answer_tokens: int
    """Tokens of the longest answer."""


@torch.no_grad()
def evaluate(
    backbone: Backbone,
    prompt: Prompt,
    examples: Sequence[Example],
    label_ids: Sequence[Sequence[int]],
    options: ReadOptions = ReadOptions(),
    name: str = "",
) -> Metrics:
    """Evaluates a prompt.

    Args:
        backbone: The frozen model.
        prompt: As in `objective.loss`.
        examples: Rows with answers.
        label_ids: The token ids of each label's text; empty where answers are generated.
        options: How rows are read.
        name: The label of the progress bar.

    Raises:
        OutOfMemoryError: As in `score_rows`.
    """
    return Metrics.of(score_rows(backbone, prompt, examples, label_ids, options, name), examples)


@torch.no_grad()
def score_rows(
    backbone: Backbone,
    prompt: Prompt,
    examples: Sequence[Example],
    label_ids: Sequence[Sequence[int]],
    options: ReadOptions = ReadOptions(),
    name: str = "",
) -> RowScores:
    """Scores rows in batches of similar length, and returns the results in the rows' own order.

    Args:
        backbone: The frozen model.
        prompt: As in `objective.loss`; if it has one prompt per row, `[N, P, H]`, each batch takes those of its rows.
        examples: Rows with answers.
        label_ids: As in `evaluate`.
        options: As in `evaluate`.
        name: As in `evaluate`.

    Raises:
        OutOfMemoryError: For a batch that does not fit into the device's memory.
    """
    num_new = max(map(len, label_ids), default=0)  # each label's text is read after the row
    prompt = as_batch_prompt(prompt)
    if options.path != "splice":
        with memory_explained(examples[:1]):  # a prefix is no longer than any row
            prompt = prompt.with_prefix_run(backbone, prefix_ids(examples), len(examples))
    places, parts = list[int](), list[tuple[Tensor, ...]]()
    is_shown, is_kept = options.progress, options.keeps_bars
    with tqdm(total=len(examples), desc=name, unit="row", disable=not is_shown, leave=is_kept) as bar:
        for rows in options.batches(examples, num_new, backbone.overhead_tokens):
            chosen = [examples[i] for i in rows]
            with memory_explained(chosen, num_new):
                scores = _scores(backbone, prompt.part(rows), chosen, label_ids, options.path)
            parts.append(tuple(each.cpu() for each in scores))
            places += rows
            bar.update(len(rows))
    if not places:
        labels_NC = torch.zeros(0, len(label_ids)) if label_ids else None
        return RowScores(torch.zeros(0), torch.zeros(0, dtype=torch.bool), labels_NC)
    order_N = torch.tensor(places).argsort()
    log_probs_N, is_correct_N, *labels = (torch.cat(each)[order_N] for each in zip(*parts, strict=True))
    return RowScores(log_probs_N, is_correct_N, labels[0] if labels else None)


def with_and_without(
    backbone: Backbone, prompt: Prompt, task: Task, rows: Sequence[Row], with_baseline: bool
) -> Iterator[tuple[str, BatchPrompt, list[Example], Coder]]:
    """The two sides of an evaluation: the same words without the soft prompt, if requested and possible, and with it.

    Yields:
        The side's name, its prompt, the encoded rows, and their coder.
    """
    if with_baseline:
        coder = backbone.coder(task.without_prompt())
        examples = coder.encode(rows)
        if all(example.ids for example in examples):
            yield WITHOUT, as_batch_prompt(torch.zeros(0, backbone.width)), examples, coder
        else:
            _log.warning("no baseline: without the prompt, some rows have no tokens before the answer")
    coder = backbone.coder(task)
    yield WITH, as_batch_prompt(prompt), coder.encode(rows), coder


def evaluate_rows(
    backbone: Backbone,
    prompt: Prompt,
    task: Task,
    rows: Sequence[Row],
    with_baseline: bool,
    options: ReadOptions = ReadOptions(),
) -> dict[str, Evaluation]:
    """Evaluates a prompt on rows and, if `with_baseline`, the same words without it; name -> what it comes to."""
    results = {}
    for name, its_prompt, examples, coder in with_and_without(backbone, prompt, task, rows, with_baseline):
        warn_of_cut(name, examples)
        scores = score_rows(backbone, its_prompt, examples, coder.label_ids, options, name)
        longest = max((len(example.answer_ids) for example in examples), default=0)
        results[name] = Evaluation(Metrics.of(scores, examples), scores, longest)
    return results


def _scores(
    backbone: Backbone,
    prompt: Prompt,
    examples: Sequence[Example],
    label_ids: Sequence[Sequence[int]],
    path: str,
) -> tuple[Tensor, ...]:
    """The fields of `RowScores` for a batch, without `labels_NC` if there are no labels."""
    if not label_ids:
        return answer_log_probs(backbone, prompt, backbone.collate(examples), path)
    log_probs_BC = label_log_probs(backbone, prompt, examples, [label_ids] * len(examples), path)
    labels_B = torch.tensor([example.label for example in examples], device=log_probs_BC.device)
    return log_probs_BC.gather(1, labels_B[:, None])[:, 0], log_probs_BC.argmax(1) == labels_B, log_probs_BC
