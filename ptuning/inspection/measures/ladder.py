"""The task's score for the soft prompt and for all that it could be mistaken for, on the same rows.

Knows nothing of geometry but the decoding that it is given, and for conditioned prompts makes for each row.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ptuning.data import Example, Row, Task, Template, frame_ids, warn_of_cut
from ptuning.errors import DataError, PromptError
from ptuning.evaluation import Resampled, RowScores, Scores, Table, least, score_rows
from ptuning.forward import ReadOptions, as_batch_prompt
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.inspection.vocabulary.neighbours import top
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt

NONE, RANDOM, RANDOM_TEXT = "no prompt", "random tokens", "random text"
UNTRAINED, INIT_TEXT = "untrained", "init text"
HUMAN, EMBEDDED, TEXT, SOFT = "human prompt", "decoding as embeddings", "decoding as text", "soft prompt"
_WORDS = {
    NONE: "the same words without a prompt",
    RANDOM: "prompts of random ordinary tokens",
    RANDOM_TEXT: "the same random tokens as plain text, where text stands elsewhere than virtual tokens",
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
    share_init: float | None
    """For a conditioned prompt, the share of all rows' virtual tokens that decode to their initial token."""
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
    options: ReadOptions = ReadOptions(),
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
        options: How rows are read.

    Raises:
        PromptError: When the prompt names no task.
        DataError: When there are fewer than two rows.
    """
    if prompt.task is None:
        raise PromptError("a prompt without a task", "one with a template", "Inspect it without rows")
    if len(rows) < 2:
        raise DataError(f"{len(rows)} rows to measure on", "two or more", "Give more rows")
    if num_random < 1:
        raise PromptError(f"num_random={num_random}", "a random prompt or more", "Raise it")
    measure = _Measure(backbone, prompt, rows, options)
    ids: Sequence[int] | Tensor = decoded_ids
    if prompt.is_conditioned:
        ids = decoded_rows(prompt, backbone, measure.examples, options.batch_size)
    found: dict[str, Scores] = {}
    for name, task, tensor in _rungs(prompt, backbone, ids, human):
        measured = measure(name, task, tensor)
        if measured is not None:
            found[name] = Scores.one(measured)
    found |= _random(measure, prompt, backbone, num_random, seed)
    scores = Resampled({name: found[name] for name in _WORDS if name in found}, seed)
    text, share_init = None, None
    if isinstance(ids, Tensor):
        share_init = _share_init(ids, initial_ids(prompt, backbone), backbone)
    else:
        text = " | ".join(slot_texts(prompt.task, backbone.tokenizer, ids))
    return Ladder(_table(scores), scores, text, share_init, _behaviour(scores))


def _share_init(ids_NP: Tensor, init_ids: Sequence[int | None], backbone: Backbone) -> float:
    """Share of all rows' virtual tokens that decode to their initial token."""
    same_V = Vocabulary.of(backbone).same_V
    began_P = torch.tensor([-1 if i is None else int(same_V[i]) for i in init_ids], device=ids_NP.device)
    return float((same_V[ids_NP] == began_P).float().mean())


class _Measure:
    """Scores the rows with one prompt after another."""

    def __init__(
        self,
        backbone: Backbone,
        prompt: SoftPrompt,
        rows: Sequence[Row],
        options: ReadOptions,
    ) -> None:
        assert prompt.task is not None
        self.backbone, self.rows, self.task = backbone, list(rows), prompt.task
        self._options, self._done = options, list[tuple[Task, Tensor, RowScores]]()
        self.examples = self.encode(self.task)

    def encode(self, task: Task) -> list[Example]:
        """The rows as tokens under a task."""
        return self.backbone.coder(task).encode(self.rows)

    def __call__(self, name: str, task: Task, prompt: Any, chosen: Sequence[int] | None = None) -> RowScores | None:
        """Scores of all rows, or of the chosen ones; None where nothing would stand before an answer."""
        examples = self.examples if task == self.task else self.encode(task)
        if chosen is None:
            warn_of_cut(name, examples)
        examples = examples if chosen is None else [examples[i] for i in chosen]
        if not all(example.ids for example in examples):
            return None
        label_ids = self.backbone.coder(task).label_ids
        is_all = chosen is None and isinstance(prompt, Tensor)
        for its_task, tensor, scores in self._done if is_all else ():  # such as a prompt that decodes to its start
            if its_task == task and tensor.shape == prompt.shape and torch.equal(tensor, prompt):
                return scores
        found = score_rows(self.backbone, prompt, examples, label_ids, self._options, name)
        if is_all:
            self._done.append((task, prompt, found))
        return found


def _rungs(
    prompt: SoftPrompt, backbone: Backbone, decoded_ids: Sequence[int] | Tensor, human: str | None
) -> list[tuple[str, Task, Any]]:
    """Name, task and prompt of every rung but the random ones; with one decoding a row, `[N, P]`, none as text."""
    task, vocabulary_VH = prompt.task, backbone.vocabulary_VH
    assert task is not None
    nothing_0H, num_slots = vocabulary_VH[:0], len(Template.parse(task.template).slot_sizes)
    rungs: list[tuple[str, Task, Any]] = [(NONE, task.without_prompt(), nothing_0H)]
    start_PH, began = untrained(prompt, backbone), [i for i in initial_ids(prompt, backbone) if i is not None]
    if start_PH is not None:
        rungs.append((UNTRAINED, task, start_PH))
        rungs.append((INIT_TEXT, task.with_texts(slot_texts(task, backbone.tokenizer, began)), nothing_0H))
    if human is not None:
        rungs.append((HUMAN, task.with_texts([human, *[""] * (num_slots - 1)]), nothing_0H))
    if isinstance(decoded_ids, Tensor):
        rungs.append((EMBEDDED, task, vocabulary_VH[decoded_ids].float()))
    else:
        rungs.append((EMBEDDED, task, Vocabulary.of(backbone).rows(decoded_ids)))
        rungs.append((TEXT, task.with_texts(slot_texts(task, backbone.tokenizer, decoded_ids)), nothing_0H))
    return [*rungs, (SOFT, task, prompt.on(backbone.device))]


def _random(measure: _Measure, prompt: SoftPrompt, backbone: Backbone, num: int, seed: int) -> dict[str, Scores]:
    """Each row with two of the random prompts, each prompt with as many rows.

    Where text stands elsewhere than virtual tokens do, behind a begin-of-text token or inside a chat's turn, random
    tokens are measured there too, as text.
    """
    vocabulary, chance, task = Vocabulary.of(backbone), random.Random(seed), measure.task
    count, a_row = len(measure.rows), min(_RANDOM_A_ROW, num)
    order = list(range(count))
    chance.shuffle(order)
    is_moved = not prompt.is_conditioned and (task.chat_template or bool(frame_ids(backbone.tokenizer)[0]))
    parts: dict[str, list[tuple[list[int], RowScores]]] = {RANDOM: [], **({RANDOM_TEXT: []} if is_moved else {})}
    for k in range(num):
        chosen = sorted(order[i] for i in range(count) for j in range(a_row) if (i + j * (num // a_row)) % num == k)
        ids = chance.choices(vocabulary.plain_ids, k=prompt.num_virtual_tokens)
        text = (task.with_texts(slot_texts(task, backbone.tokenizer, ids)), backbone.vocabulary_VH[:0])
        for name, asked in {RANDOM: (task, vocabulary.rows(ids)), RANDOM_TEXT: text}.items():
            if name in parts and chosen and (measured := measure(name, *asked, chosen)) is not None:
                parts[name].append((chosen, measured))
    return {name: Scores.several(each, count) for name, each in parts.items() if each}


def initial_ids(prompt: SoftPrompt, backbone: Backbone) -> list[int | None]:
    """The token that each virtual token began at; None where it was none, is not known, or was another model's."""
    ids = prompt.init.get("token_ids") or []
    is_own = prompt.fingerprint is None or prompt.fingerprint.matches(backbone.fingerprint)
    known = [i for i in ids if i is not None]
    if len(ids) != prompt.num_virtual_tokens or not is_own or max(known, default=0) >= len(backbone.vocabulary_VH):
        return [None] * prompt.num_virtual_tokens
    return list(ids)


def untrained(prompt: SoftPrompt, backbone: Backbone) -> Tensor | None:
    """The prompt as it began, `[P, H]`; None where that is not known."""
    ids = [i for i in initial_ids(prompt, backbone) if i is not None]
    return Vocabulary.of(backbone).rows(ids) if len(ids) == prompt.num_virtual_tokens else None


def slot_texts(task: Task, tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """A text for each of the template's slots, of one token id a virtual token."""
    texts, first = [], 0
    for size in Template.parse(task.template).slot_sizes:
        texts.append(tokenizer.decode(list(ids[first : first + size])))
        first += size
    return texts


def decoded_rows(prompt: SoftPrompt, backbone: Backbone, examples: Sequence[Example], batch_size: int) -> Tensor:
    """The nearest tokens, by cosine, of what a conditioned prompt makes of each row, `[N, P]`."""
    vocabulary, found = Vocabulary.of(backbone), []
    for start in range(0, len(examples), batch_size):
        batch = backbone.collate(examples[start : start + batch_size]).to(backbone.device)
        own_BPH = as_batch_prompt(prompt.on(backbone.device)).embeddings(backbone, batch)
        _, ids_M1 = top(rearrange(own_BPH, "b p h -> (b p) h"), vocabulary, 1)
        found.append(rearrange(ids_M1, "(b p) 1 -> b p", b=len(own_BPH)))
    return torch.cat(found)


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
    if not scores.has_labels:
        return None
    decoding, bases = decoding_of(scores)
    return least(scores.divergence_kept(decoding, SOFT, base) for base in bases).as_dict()


def decoding_of(scores: Resampled) -> tuple[str, list[str]]:
    """The rung that stands for the decoding, and the random ones over which it must gain.

    Text that stands elsewhere than virtual tokens must gain over random text there too, lest the place be its merit;
    and over random tokens, lest mending the harm of the place be.
    """
    if TEXT not in scores.names:
        return EMBEDDED, [RANDOM]
    return TEXT, [name for name in (RANDOM, RANDOM_TEXT) if name in scores.names]
