"""A text in the place of a soft prompt: searched word by word, and measured beside the prompt.

The search swaps one token at a time where the gradient of the loss says that another may serve better (Shin et al.
2020), keeps what lowers the loss on fresh rows, and reads every candidate as the text that it is. Knows nothing of how
prompts are trained.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptuning.data import BatchStream, Row, Task
from ptuning.errors import ConfigError, PromptError
from ptuning.evaluation import Resampled, Table, score_rows
from ptuning.forward import ReadOptions
from ptuning.inspection.measures.ladder import HUMAN, NONE, SOFT, TEXT, ladder, slot_texts
from ptuning.inspection.measures.protocol import Measured
from ptuning.inspection.verdict import Thresholds, word_of_text
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.inspection.vocabulary.neighbours import top
from ptuning.inspection.vocabulary.origin import initial_ids
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt
from ptuning.training import backward_in_parts

NAME, HARDENED = "hardened", "hardened text"
COLUMNS = {
    "prompt": "what stands in the prompt's place",
    "text": "its text, slots joined by | ; None for the soft prompt",
    "accuracy": "share of correct answers",
    "accuracy_low": "lower end of its 95 % interval (bootstrap over rows)",
    "accuracy_high": "upper end of its 95 % interval",
    "loss": "mean cross-entropy of a row's answer, in nats",
    "kept": "share of the soft prompt's gain over random tokens that the text keeps; None where it is undefined",
    "kept_low": "lower end of its 95 % interval, by which it is judged",
    "kept_high": "upper end of its 95 % interval",
    "verdict": "FAITHFUL, PARTIAL, DECORATIVE, NO EFFECT (of the soft prompt itself) or NOT JUDGED; None for no text",
}


@dataclass(frozen=True)
class Search:
    """How a text is searched."""

    max_steps: int = 100
    """Steps, in each of which one token may be swapped."""
    batch_size: int = 32
    """Rows that a step reads."""
    num_candidates: int = 8
    """Swaps that are read in each step."""
    num_tokens: int = 64
    """Tokens that the gradient proposes for each place."""
    seed: int = 0
    """Seed of the rows and the candidates."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "num_candidates", "num_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}", "1 or more", "Raise it")


@dataclass(frozen=True, kw_only=True)
class Hardened(Measured):
    """The price of a text; the table has a record for each thing in the prompt's place."""

    texts: Sequence[str]
    """The text that was found for each slot."""
    template: str
    """The template with these texts in the slots' places: a plain prompt."""
    scores: Resampled
    """The scores of the rows."""


def harden(
    prompt: SoftPrompt,
    backbone: Backbone,
    train: Sequence[Row],
    test: Sequence[Row],
    human: str | None = None,
    search: Search | None = None,
    thresholds: Thresholds | None = None,
    options: ReadOptions = ReadOptions(),
    on_step: Callable[[int, float], None] | None = None,
) -> Hardened:
    """Searches a text that does what a prompt does, with as many tokens, and tells what it costs.

    Args:
        prompt: A prompt with a task, the same for all rows.
        backbone: The base model.
        train: Rows to search with.
        test: Rows to measure on; best others.
        human: A person's text, measured beside it in the first slot's place.
        search: How it is searched.
        thresholds: Where one verdict ends and the next begins.
        options: How rows are read in measuring.
        on_step: Is called after every step with its number, counted from 1, and the text's loss on the step's rows.

    Raises:
        PromptError: For a prompt without a task, or a conditioned one.
    """
    if prompt.task is None or prompt.is_conditioned:
        kind = "a conditioned prompt" if prompt.is_conditioned else "a prompt without a task"
        raise PromptError(kind, "a prompt with a template, the same for all rows", "Harden another")
    vocabulary, own = Vocabulary.of(backbone), search or Search()
    decoded = _decoded(prompt, vocabulary)
    began = [i for i in initial_ids(prompt, backbone, vocabulary) if i is not None]
    starts = [decoded, *([began] if len(began) == len(decoded) else [])]
    searcher = _Searcher(prompt.task, backbone, vocabulary, train, own)
    ids = searcher.found(starts, on_step or (lambda step, loss: None))
    texts = slot_texts(prompt.task, backbone.tokenizer, ids)
    table, scores = price(prompt, backbone, test, human, texts, own.seed, thresholds, options, vocabulary)
    how = (
        "What texts in the prompt's place cost, on the same rows. The hardened text was searched on training rows, one "
        "token at a time. The verdict rests on the lower end of the share of the soft prompt's gain that a text keeps."
    )
    template = prompt.task.with_texts(texts).template
    return Hardened(
        name=NAME, title="Put into words", how=how, table=table, texts=texts, template=template, scores=scores
    )


def price(
    prompt: SoftPrompt,
    backbone: Backbone,
    rows: Sequence[Row],
    human: str | None = None,
    hardened: Sequence[str] | None = None,
    seed: int = 0,
    thresholds: Thresholds | None = None,
    options: ReadOptions = ReadOptions(),
    vocabulary: Vocabulary | None = None,
) -> tuple[Table, Resampled]:
    """What texts in a prompt's place cost: a table with the columns `COLUMNS`, and the scores that it rests on.

    Args:
        prompt: A prompt with a task, the same for all rows.
        backbone: The base model.
        rows: Rows with answers, to measure on.
        human: A person's text, in the first slot's place.
        hardened: A text for each slot that was searched.
        seed: Seed of the random tokens and of the bootstrap.
        thresholds: Where one verdict ends and the next begins.
        options: How rows are read.
        vocabulary: The base model's vocabulary; None: it is made.
    """
    vocabulary = vocabulary or Vocabulary.of(backbone)
    texts = {} if hardened is None else {HARDENED: hardened}
    decoded = _decoded(prompt, vocabulary)
    made = ladder(
        prompt, backbone, rows, decoded, human, seed=seed, options=options, vocabulary=vocabulary, texts=texts
    )
    shown = {TEXT: made.text, **{name: " | ".join(own) for name, own in texts.items()}}
    return _table(made.scores, shown | ({} if human is None else {HUMAN: human}), thresholds), made.scores


def _decoded(prompt: SoftPrompt, vocabulary: Vocabulary) -> list[int]:
    """The id of the nearest token of each virtual token."""
    ids: list[int] = top(prompt.embeddings_PH.to(vocabulary.device), vocabulary, 1)[1][:, 0].tolist()
    return ids


def _table(scores: Resampled, texts: dict[str, str | None], thresholds: Thresholds | None) -> Table:
    records = []
    for name in (NONE, HUMAN, TEXT, HARDENED, SOFT):
        if name not in scores.names:
            continue
        accuracy, loss = scores.mean(name, "accuracy"), scores.mean(name, "loss")
        record = dict.fromkeys(COLUMNS) | {"prompt": name, "text": texts.get(name)}
        record |= {"accuracy": accuracy.value, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
        record |= {"loss": loss.value}
        if name in texts:
            word, kept = word_of_text(scores, name, thresholds)
            record |= {"kept": kept.value, "kept_low": kept.low, "kept_high": kept.high, "verdict": word}
        records.append(record)
    return Table(COLUMNS, records)


class _Searcher:
    """Swaps tokens of a text, as long as its loss falls."""

    def __init__(
        self, task: Task, backbone: Backbone, vocabulary: Vocabulary, rows: Sequence[Row], search: Search
    ) -> None:
        self._task, self._backbone, self._vocabulary = task, backbone, vocabulary
        self._rows, self._search, self._chance = rows, search, random.Random(search.seed)
        coder = backbone.coder(task)
        self._examples = coder.encode(rows)
        self._stream = BatchStream([len(each) for each in self._examples], search.batch_size, search.seed)
        allowed = [i for i in vocabulary.plain_ids if is_word(vocabulary.texts([i])[0])]
        self._allowed_A = torch.tensor(allowed, device=vocabulary.device)

    def found(self, starts: Sequence[Sequence[int]], on_step: Callable[[int, float], None]) -> list[int]:
        """The ids of the best text."""
        first = list(self._stream[0])
        usable = [list(own) for own in starts if self._is_read_as(own)] or [self._drawn(len(starts[0]))]
        ids = min(usable, key=lambda own: self._loss(own, first))
        for step in range(self._search.max_steps):
            rows = list(self._stream[step])
            best, lowest = ids, self._loss(ids, rows)
            for other in self._candidates(ids, self._gradient(ids, rows)):
                loss = self._loss(other, rows)
                if loss < lowest:
                    best, lowest = other, loss
            ids = best
            on_step(step + 1, lowest)
        return ids

    def _drawn(self, number: int) -> list[int]:
        """Words at random that are read as they are written."""
        allowed = self._allowed_A.tolist()
        for _ in range(1000):
            ids = self._chance.choices(allowed, k=number)
            if self._is_read_as(ids):
                return ids
        raise PromptError("a tokenizer that reads no words as they are written", "another base model", "Name another")

    def _is_read_as(self, ids: Sequence[int]) -> bool:
        """Whether the slots' texts have these tokens."""
        first = 0
        for text in slot_texts(self._task, self._backbone.tokenizer, ids):
            own = list(self._backbone.tokenizer(text, add_special_tokens=False).input_ids)
            if own != list(ids[first : first + len(own)]):
                return False
            first += len(own)
        return first == len(ids)

    @torch.no_grad()
    def _loss(self, ids: Sequence[int], rows: Sequence[int]) -> float:
        """The mean loss of some rows with the text in the prompt's place: over the labels where there are labels."""
        task = self._task.with_texts(slot_texts(self._task, self._backbone.tokenizer, ids))
        coder = self._backbone.coder(task)
        examples = coder.encode([self._rows[i] for i in rows])
        scores = score_rows(self._backbone, self._vocabulary.rows([]), examples, coder.label_ids)
        if scores.labels_NC is None:
            return -float(scores.log_probs_N.mean())
        own_N = torch.tensor([example.label for example in examples])
        return float(torch.nn.functional.cross_entropy(scores.labels_NC, own_N))

    def _gradient(self, ids: Sequence[int], rows: Sequence[int]) -> Tensor:
        """The gradient of the loss with respect to the tokens' embeddings, `[P, H]`."""
        leaf_PH = self._vocabulary.rows(ids).requires_grad_()
        backward_in_parts(self._backbone, leaf_PH, [self._examples[i] for i in rows], 1 / len(rows))
        assert leaf_PH.grad is not None
        return leaf_PH.grad

    def _candidates(self, ids: Sequence[int], gradient_PH: Tensor) -> list[list[int]]:
        """Texts that differ in one token, drawn from those that the gradient proposes."""
        number = min(self._search.num_tokens, len(self._allowed_A))
        falls_PA = -gradient_PH @ self._vocabulary.rows(self._allowed_A).T  # to first order, but for a constant
        proposed_PK = self._allowed_A[falls_PA.topk(number, dim=1).indices].tolist()
        found = list[list[int]]()
        for _ in range(10 * self._search.num_candidates):
            place = self._chance.randrange(len(ids))
            other = [*ids]
            other[place] = self._chance.choice(proposed_PK[place])
            if other not in (*found, list(ids)) and self._is_read_as(other):
                found.append(other)
            if len(found) == self._search.num_candidates:
                break
        return found


def is_word(text: str) -> bool:
    """Whether a token's text is made of letters, and of more than one."""
    return text.strip().isalpha() and len(text.strip()) > 1


def price_lines(found: Hardened) -> list[str]:
    """The price as lines for a terminal."""
    lines = [f"{'':<18}{'accuracy':<24}{'keeps of the gain':<24}verdict"]
    for record in found.table:
        accuracy = f"{record['accuracy']:.3f} ({record['accuracy_low']:.3f} to {record['accuracy_high']:.3f})"
        lines.append(f"{record['prompt']:<18}{accuracy:<24}{_kept(record):<24}{record['verdict'] or ''}")
    return [*lines, "", f"hardened text: {' | '.join(found.texts)!r}", f"as a template: {found.template!r}"]


def _kept(record: Any) -> str:
    if record["kept"] is None:
        return ""
    return f"{record['kept']:.0%} ({record['kept_low']:.0%} to {record['kept_high']:.0%})"
