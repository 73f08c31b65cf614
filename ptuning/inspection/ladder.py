"""The task's score for the soft prompt and for all that it could be mistaken for, on the same rows.

Knows nothing of geometry but the decoding that it is given.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptuning.backbone import Backbone
from ptuning.data import Example
from ptuning.errors import DataError, PromptError
from ptuning.evaluation import RowScores, score_rows
from ptuning.forward import embeddings_of
from ptuning.inspection.nulls import top
from ptuning.inspection.resampling import Resampled, Scores
from ptuning.inspection.table import Table
from ptuning.inspection.vocabulary import Vocabulary
from ptuning.prompt import SoftPrompt
from ptuning.rows import Row
from ptuning.template import Task, Template

NONE, RANDOM, UNTRAINED, INIT_TEXT = "no prompt", "random tokens", "untrained", "init text"
HUMAN, EMBEDDED, TEXT, SOFT = "human prompt", "decoding as embeddings", "decoding as text", "soft prompt"
_WORDS = {
    NONE: "the same words without a prompt",
    RANDOM: "prompts of random ordinary tokens",
    UNTRAINED: "the prompt as it was before training",
    INIT_TEXT: "the tokens that it was initialised from, as plain text",
    HUMAN: "the text that was given, in the prompt's place",
    EMBEDDED: "each virtual token replaced by its nearest token's embedding",
    TEXT: "the nearest tokens as plain text, tokenised again",
    SOFT: "the soft prompt itself",
}
_RANDOM_A_ROW = 2  # random prompts that each row is read with
COLUMNS = {
    "rung": "what stands in the prompt's place",
    "what": "the same in words",
    "prompts": "how many prompts of the kind were measured",
    "rows": "rows that were read, those of all prompts together",
    "accuracy": "share of correct answers",
    "accuracy_low": "lower end of its 95 % interval (bootstrap over rows, and over prompts where there are several)",
    "accuracy_high": "upper end",
    "loss": "mean cross-entropy of a row's answer, in nats",
    "loss_low": "lower end of its 95 % interval",
    "loss_high": "upper end",
}


@dataclass(frozen=True)
class Ladder:
    """The rungs, and what follows from them."""

    table: Table
    """A record a rung; `COLUMNS` says what they hold."""
    scores: Resampled
    """The rows' scores, to compare rungs by."""
    text: str | None
    """The decoding as plain text, the slots' texts joined by " | "; None for a conditioned prompt."""
    behaviour: Mapping[str, Any] | None
    """1 - KL(soft, decoding) / KL(soft, random) over the labels, its interval, or value None where undefined."""

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"table": self.table.as_dict(), "text": self.text, "behaviour": self.behaviour}


@torch.no_grad()
def ladder(
    prompt: SoftPrompt,
    backbone: Backbone,
    rows: Sequence[Row],
    decoded_ids: Sequence[int],
    human: str | None = None,
    num_random: int = 20,
    seed: int = 0,
    batch_size: int = 32,
    max_batch_tokens: int | None = None,
    progress: bool = False,
) -> Ladder:
    """Measures the task's score on every rung.

    Args:
        prompt: The prompt, with its task.
        backbone: The base model.
        rows: Rows with answers.
        decoded_ids: The nearest token of each virtual token; not looked at for a conditioned prompt, whose rows are
            each decoded by themselves.
        human: A person's prompt, put in the first slot's place.
        num_random: Prompts of random tokens, each row being read with two of them.
        seed: Of the random tokens and of the bootstrap.
        batch_size: Rows read at once.
        max_batch_tokens: Tokens read at once; None: no limit.
        progress: Whether to show a progress bar on stderr.

    Raises:
        PromptError: When the prompt names no task.
        DataError: When there are fewer than two rows.
    """
    if prompt.task is None:
        raise PromptError("a prompt without a task", "one with a template", "Inspect it without rows")
    if len(rows) < 2:
        raise DataError(f"{len(rows)} rows to measure on", "two or more", "Give more rows")
    measure = _Measure(backbone, prompt, rows, batch_size, max_batch_tokens, progress)
    found: dict[str, Scores] = {}
    for name, task, tensor in _rungs(prompt, backbone, decoded_ids, human, measure.examples):
        measured = measure(name, task, tensor)
        if measured is not None:
            found[name] = Scores.one(measured)
    found[RANDOM] = _random(measure, prompt, backbone, num_random, seed)
    scores = Resampled({name: found[name] for name in _WORDS if name in found}, seed)
    texts = None if prompt.is_conditioned else slot_texts(prompt.task, backbone.tokenizer, decoded_ids)
    return Ladder(_table(scores), scores, None if texts is None else " | ".join(texts), _behaviour(scores))


class _Measure:
    """Scores the rows with one prompt after another."""

    def __init__(
        self,
        backbone: Backbone,
        prompt: SoftPrompt,
        rows: Sequence[Row],
        batch_size: int,
        max_batch_tokens: int | None,
        progress: bool,
    ) -> None:
        assert prompt.task is not None
        self.backbone, self.rows, self.task = backbone, list(rows), prompt.task
        self._options: dict[str, Any] = {"batch_size": batch_size, "max_batch_tokens": max_batch_tokens}
        self._progress, self._done = progress, list[tuple[Task, Tensor, RowScores]]()
        self.examples = self.encode(self.task)

    def encode(self, task: Task) -> list[Example]:
        """The rows as tokens under a task."""
        return self.backbone.coder(task).encode(self.rows)

    def __call__(self, name: str, task: Task, prompt: Any, chosen: Sequence[int] | None = None) -> RowScores | None:
        """Scores of all rows, or of the chosen ones; None where nothing would stand before an answer."""
        examples = self.examples if task == self.task else self.encode(task)
        examples = examples if chosen is None else [examples[i] for i in chosen]
        if not all(example.ids for example in examples):
            return None
        label_ids = self.backbone.coder(task).label_ids
        shown = name if self._progress else None
        is_all = chosen is None and isinstance(prompt, Tensor)
        for its_task, tensor, scores in self._done if is_all else ():  # such as a prompt that decodes to its start
            if its_task == task and tensor.shape == prompt.shape and torch.equal(tensor, prompt):
                return scores
        found = score_rows(self.backbone, prompt, examples, label_ids, progress=shown, **self._options)
        if is_all:
            self._done.append((task, prompt, found))
        return found


def _rungs(
    prompt: SoftPrompt, backbone: Backbone, decoded_ids: Sequence[int], human: str | None, examples: Sequence[Example]
) -> list[tuple[str, Task, Any]]:
    """Name, task and prompt of every rung but the random ones."""
    task, vocabulary_VH = prompt.task, backbone.vocabulary_VH
    assert task is not None
    nothing_0H, num_slots = vocabulary_VH[:0], len(Template.parse(task.template).slot_sizes)
    rungs: list[tuple[str, Task, Any]] = [(NONE, task.without_prompt(), nothing_0H)]
    start_PH, init_ids = untrained(prompt, backbone), prompt.init.get("token_ids") or [None]
    if start_PH is not None:
        rungs.append((UNTRAINED, task, start_PH))
    if None not in init_ids:
        rungs.append((INIT_TEXT, task.with_texts(slot_texts(task, backbone.tokenizer, init_ids)), nothing_0H))
    if human is not None:
        rungs.append((HUMAN, task.with_texts([human, *[""] * (num_slots - 1)]), nothing_0H))
    if prompt.is_conditioned:
        made_NPH = prompts_of_rows(prompt, backbone, examples)
        rungs.append((EMBEDDED, task, nearest_embeddings(made_NPH, backbone)))
    else:
        vocabulary = Vocabulary.of(backbone)
        rungs.append((EMBEDDED, task, vocabulary.rows(decoded_ids)))
        rungs.append((TEXT, task.with_texts(slot_texts(task, backbone.tokenizer, decoded_ids)), nothing_0H))
    return [*rungs, (SOFT, task, prompt.on(backbone.device))]


def _random(measure: _Measure, prompt: SoftPrompt, backbone: Backbone, num: int, seed: int) -> Scores:
    """Each row with two of the random prompts, each prompt with as many rows."""
    vocabulary, chance = Vocabulary.of(backbone), random.Random(seed)
    count, a_row = len(measure.rows), min(_RANDOM_A_ROW, num)
    order = list(range(count))
    chance.shuffle(order)
    parts: list[tuple[list[int], RowScores]] = []
    for k in range(num):
        chosen = sorted(order[i] for i in range(count) for j in range(a_row) if (i + j * (num // a_row)) % num == k)
        tokens = chance.choices(vocabulary.plain_ids, k=prompt.num_virtual_tokens)
        measured = measure(RANDOM, measure.task, vocabulary.rows(tokens), chosen) if chosen else None
        if measured is not None:
            parts.append((chosen, measured))
    return Scores.several(parts, count)


def untrained(prompt: SoftPrompt, backbone: Backbone) -> Tensor | None:
    """The prompt as it began, `[P, H]`; None where that is not known."""
    ids = prompt.init.get("token_ids")
    if ids and None not in ids:
        return Vocabulary.of(backbone).rows(ids)
    return None


def slot_texts(task: Task, tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """A text for each of the template's slots, of one token id a virtual token."""
    texts, first = [], 0
    for size in Template.parse(task.template).slot_sizes:
        texts.append(tokenizer.decode(list(ids[first : first + size])))
        first += size
    return texts


def prompts_of_rows(prompt: SoftPrompt, backbone: Backbone, examples: Sequence[Example]) -> Tensor:
    """What a conditioned prompt makes of each row, `[N, P, H]`."""
    made = []
    for start in range(0, len(examples), 64):
        batch = backbone.collate(examples[start : start + 64]).to(backbone.device)
        made.append(embeddings_of(prompt.on(backbone.device), backbone, batch))
    return torch.cat(made)


def nearest_embeddings(prompt_NPH: Tensor, backbone: Backbone) -> Tensor:
    """Each virtual token's nearest token's embedding, by cosine, `[N, P, H]`."""
    vocabulary = Vocabulary.of(backbone)
    _, ids_MK = top(prompt_NPH.flatten(0, 1), vocabulary, 1)
    return vocabulary.matrix_VH[ids_MK[:, 0]].float().unflatten(0, prompt_NPH.shape[:2])


def _table(scores: Resampled) -> Table:
    records = []
    for name in scores.names:
        accuracy, loss = scores.mean(name, "accuracy"), scores.mean(name, "loss")
        records.append(
            {"rung": name, "what": _WORDS[name], "prompts": scores.num_prompts(name), "rows": scores.num_rows(name)}
            | {"accuracy": accuracy.value, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
            | {"loss": loss.value, "loss_low": loss.low, "loss_high": loss.high}
        )
    return Table(COLUMNS, records)


def _behaviour(scores: Resampled) -> dict[str, Any] | None:
    """Behavioural fidelity: how much nearer to the soft prompt's answers the decoding's are than random prompts'."""
    decoding = TEXT if TEXT in scores.names else EMBEDDED
    if not scores.has_labels:
        return None
    return scores.divergence_kept(decoding, SOFT, RANDOM).as_dict()
