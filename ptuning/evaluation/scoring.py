"""How good a prompt is on rows with answers: accuracy with its interval, and the loss.

Knows nothing of training, files or the command line.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ptuning.data import Coder, Example, Row, Task, num_cut, prefix_ids, warn_of_cut
from ptuning.forward import BatchPrompt, Prompt, ReadOptions, answer_log_probs, as_batch_prompt, label_log_probs
from ptuning.model import Backbone

_log = logging.getLogger(__name__)

WITHOUT, WITH = "the same words, no soft prompt", "soft prompt"  # names of results
_Z = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class Metrics:
    """Counts over some rows, and what follows from them."""

    num_rows: int
    """Rows that were evaluated."""
    num_correct: int
    """With a verbalizer: rows whose label is the most likely. Without: rows whose answer greedy generation writes."""
    num_label_tokens: int
    """Tokens of all answers."""
    loss_sum: float
    """Cross-entropy of the answers' tokens in nats, summed."""
    num_cut: int = 0
    """Rows that lost the end of their text to fit."""

    @property
    def accuracy(self) -> float:
        """Share of the rows that are correct; not a number where there are none."""
        return self.num_correct / self.num_rows if self.num_rows else math.nan

    @property
    def loss(self) -> float:
        """Mean cross-entropy of an answer token, in nats; not a number where there are none."""
        return self.loss_sum / self.num_label_tokens if self.num_label_tokens else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson 1927)."""
        n, p = self.num_rows, self.accuracy
        if not n:
            return 0.0, 1.0
        centre, half = p + _Z**2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        scale = 1 + _Z**2 / n
        return (centre - half) / scale, (centre + half) / scale

    def __str__(self) -> str:
        """One line for people."""
        low, high = self.interval
        return f"accuracy {self.accuracy:.3f} ({low:.3f} to {high:.3f}) on {self.num_rows:,} rows, loss {self.loss:.3f}"

    def as_dict(self) -> dict[str, Any]:
        """What is written to files and printed as JSON."""
        return {
            "num_rows": self.num_rows,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "loss": self.loss,
            "num_cut": self.num_cut,
        }


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
        name: What the progress bar is called.
    """
    scores = score_rows(backbone, prompt, examples, label_ids, options, name)
    num_tokens = sum(len(example.answer_ids) for example in examples)
    num_correct, total = int(scores.is_correct_N.sum()), -float(scores.log_probs_N.double().sum())
    return Metrics(len(examples), num_correct, num_tokens, total, num_cut(examples))


@dataclass(frozen=True)
class RowScores:
    """What a prompt makes of each row, on the CPU."""

    log_probs_N: Tensor
    """Log-probability of the row's own answer, in nats."""
    is_correct_N: Tensor
    """With labels: whether the row's own is the most likely. Without: whether greedy generation writes its answer."""
    labels_NC: Tensor | None
    """Log-probability of each label's text; None without labels."""


@torch.no_grad()
def score_rows(
    backbone: Backbone,
    prompt: Prompt,
    examples: Sequence[Example],
    label_ids: Sequence[Sequence[int]],
    options: ReadOptions = ReadOptions(),
    name: str = "",
) -> RowScores:
    """Scores rows in batches of similar length, and gives them back in their own order; no rows give no scores.

    Args:
        backbone: The frozen model.
        prompt: As in `objective.loss`; with one a row, `[N, P, H]`, each batch takes its rows' own.
        examples: Rows with answers.
        label_ids: As in `evaluate`.
        options: As in `evaluate`.
        name: As in `evaluate`.
    """
    num_new = max(map(len, label_ids), default=0)  # a row is read with each label's text behind it
    prompt = as_batch_prompt(prompt)
    if options.path != "splice":
        prompt = prompt.with_prefix_run(backbone, prefix_ids(examples), len(examples))
    places, parts = list[int](), list[tuple[Tensor, ...]]()
    with tqdm(total=len(examples), desc=name, unit="row", disable=not options.progress) as bar:
        for rows in options.batches(examples, num_new, backbone.overhead_tokens):
            chosen = [examples[i] for i in rows]
            found = _scores(backbone, prompt.part(rows), chosen, label_ids, options.path)
            parts.append(tuple(each.cpu() for each in found))
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
    """What is compared: the same words without the soft prompt (where asked for and possible), and with it.

    Yields:
        The side's name, its prompt, the encoded rows, and their coder.
    """
    if with_baseline:
        coder = backbone.coder(task.without_prompt())
        examples = coder.encode(rows)
        if all(example.ids for example in examples):
            yield WITHOUT, as_batch_prompt(torch.zeros(0, backbone.width)), examples, coder
        else:
            _log.warning("no baseline: without the prompt nothing stands before some answers")
    coder = backbone.coder(task)
    yield WITH, as_batch_prompt(prompt), coder.encode(rows), coder


def evaluate_rows(
    backbone: Backbone,
    prompt: Prompt,
    task: Task,
    rows: Sequence[Row],
    with_baseline: bool,
    options: ReadOptions = ReadOptions(),
) -> dict[str, Metrics]:
    """Evaluates a prompt on rows, and the same words without it where `with_baseline`; name -> metrics."""
    results = {}
    for name, its_prompt, examples, coder in with_and_without(backbone, prompt, task, rows, with_baseline):
        warn_of_cut(name, examples)
        results[name] = evaluate(backbone, its_prompt, examples, coder.label_ids, options, name)
    return results


def _scores(
    backbone: Backbone,
    prompt: Prompt,
    examples: Sequence[Example],
    label_ids: Sequence[Sequence[int]],
    path: str,
) -> tuple[Tensor, ...]:
    """The fields of `RowScores` for a batch, the last one left out without labels."""
    if not label_ids:
        return answer_log_probs(backbone, prompt, backbone.collate(examples), path)
    scores_BC = label_log_probs(backbone, prompt, examples, [label_ids] * len(examples), path)
    labels_B = torch.tensor([example.label for example in examples], device=scores_BC.device)
    return scores_BC.gather(1, labels_B[:, None])[:, 0], scores_BC.argmax(1) == labels_B, scores_BC
