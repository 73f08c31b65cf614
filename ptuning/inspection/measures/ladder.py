"""The ladder: scores of the soft prompt and of everything that it could be mistaken for, on the same rows.

Knows nothing of geometry except the decoding that it is given; rows of conditioned prompts it decodes itself.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ptuning.data import Example, Row, Task, Template, frame_ids, warn_of_cut
from ptuning.errors import DataError, PromptError
from ptuning.evaluation import Bar, Bars, Estimate, Measure, Resampled, RowScores, Scores, Table, least, score_rows
from ptuning.forward import ReadOptions, as_batch_prompt
from ptuning.inspection.measures import nearest_tokens
from ptuning.inspection.measures.protocol import Measured, Subject
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.inspection.vocabulary.neighbours import top
from ptuning.inspection.vocabulary.origin import initial_ids, untrained
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt

NAME = "ladder"
NONE, RANDOM, RANDOM_TEXT = "no prompt", "random tokens", "random text"
UNTRAINED, INIT_TEXT = "untrained", "init text"
HUMAN, EMBEDDED, TEXT, SOFT = "human prompt", "decoding as embeddings", "decoding as text", "soft prompt"
_WORDS = {
    NONE: "the same words without a prompt",
    RANDOM: "prompts of random ordinary tokens",
    RANDOM_TEXT: "the same random tokens as plain text, where text and virtual tokens stand in different places",
    UNTRAINED: "the prompt as it was before training",
    INIT_TEXT: "the tokens that it was initialised from, as plain text",
    HUMAN: "a person's text in the prompt's place",
    EMBEDDED: "each virtual token replaced by its nearest token's embedding",
    TEXT: "the nearest tokens as plain text, which is tokenised again",
    SOFT: "the soft prompt itself",
}
_RANDOM_A_ROW = 2  # random prompts that each row is read with
COLUMNS = {
    "rung": "what stands in the prompt's place",
    "what": "the same in words",
    "prompts": "how many prompts of this kind were measured",
    "rows": "rows that were read, summed over the prompts",
    "accuracy": "share of correct answers",
    "accuracy_low": "lower end of its 95 % interval (bootstrap over rows, and over prompts where there are several)",
    "accuracy_high": "upper end of its 95 % interval",
    "loss": "mean cross-entropy of a row's answer, in nats",
    "loss_low": "lower end of its 95 % interval",
    "loss_high": "upper end of its 95 % interval",
}


@dataclass(frozen=True, kw_only=True)
class Ladder(Measured):
    """The rungs and what follows from them; the table has a record for each rung."""

    scores: Resampled
    """The scores of the rows, by which rungs are compared."""
    text: str | None
    """The decoding as plain text, the slots' texts joined by " | "; None for a conditioned prompt."""
    share_init: float | None
    """For a conditioned prompt the share of virtual tokens, over all rows, that decode to their initial token."""
    behaviour: Mapping[str, Any] | None
    """1 - KL(soft, decoding) / KL(soft, random) over the labels, with its interval; value None where undefined."""

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return {"table": self.table.as_dict(), "text": self.text, "behaviour": self.behaviour}


def measure(subject: Subject, earlier: Mapping[str, Measured]) -> Ladder | None:
    """Scores the prompt on its rows; None without rows."""
    if subject.rows is None:
        return None
    decoded = nearest_tokens.nearest(earlier[nearest_tokens.NAME].table)
    return ladder(
        subject.prompt,
        subject.backbone,
        subject.rows,
        [record["id"] for record in decoded],
        subject.human,
        seed=subject.seed,
        options=subject.options,
        vocabulary=subject.vocabulary,
    )


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
    vocabulary: Vocabulary | None = None,
    texts: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Ladder:
    """Scores every rung on the prompt's task.

    Args:
        prompt: The prompt, with its task.
        backbone: The base model.
        rows: Rows with answers.
        decoded_ids: The nearest token of each virtual token; ignored for a conditioned prompt, which is decoded for
            each row.
        human: A person's prompt, which takes the place of the first slot.
        num_random: Prompts of random tokens; each row is read with two of them.
        seed: Seed of the random tokens and of the bootstrap.
        options: How rows are read.
        vocabulary: The base model's vocabulary; None: it is made.
        texts: Name -> a text for each slot, further rungs.

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
    vocabulary = vocabulary or Vocabulary.of(backbone)
    scorer = _Scorer(backbone, prompt, rows, options)
    ids: Sequence[int] | Tensor = decoded_ids
    if prompt.is_conditioned:
        ids = decoded_rows(prompt, backbone, scorer.examples, options.batch_size, vocabulary)
    found: dict[str, Scores] = {}
    num_slots = len(Template.parse(prompt.task.template).slot_sizes)
    in_place = dict(texts) if human is None else {HUMAN: [human, *[""] * (num_slots - 1)], **texts}
    for name, task, tensor in _rungs(prompt, backbone, ids, in_place, vocabulary):
        scored = scorer(name, task, tensor)
        if scored is not None:
            found[name] = Scores.one(scored)
    found |= _random(scorer, prompt, backbone, num_random, seed, vocabulary)
    in_order = [*(name for name in _WORDS if name != SOFT), *texts, SOFT]
    scores = Resampled({name: found[name] for name in in_order if name in found}, seed)
    if isinstance(ids, Tensor):
        share_init = _share_init(ids, initial_ids(prompt, backbone, vocabulary), vocabulary)
        return _measured(scores, None, share_init, _chance(scorer.examples))
    text = " | ".join(slot_texts(prompt.task, backbone.tokenizer, ids))
    return _measured(scores, text, None, _chance(scorer.examples))


def _measured(
    scores: Resampled, text: str | None, share_init: float | None, chance: tuple[str, float] | None
) -> Ladder:
    table, behaviour = _table(scores), _behaviour(scores)
    measure: Measure = "accuracy" if scores.has_labels else "loss"
    how = (
        f"The {measure} with each thing in the prompt's place, on the same rows; thin lines are 95 % intervals. A "
        "decoding means something where its bar reaches that of the soft prompt and the bar of random tokens does not."
    )
    findings = {}
    if behaviour is not None:
        what = "behavioural fidelity, 1 - KL(prompt, decoding) / KL(prompt, random) over the labels"
        findings[what] = str(Estimate(**behaviour))
    if text is not None:
        findings["the decoding as text"] = repr(text)
    return Ladder(
        name=NAME,
        title="What it does",
        how=how,
        table=table,
        chart=Bars(f"{measure} of each rung", _bars(table, measure), chance),
        lines=_lines(table),
        findings=findings,
        scores=scores,
        text=text,
        share_init=share_init,
        behaviour=behaviour,
    )


def _bars(table: Table, measure: Measure) -> list[Bar]:
    """A bar for each rung; rungs that score the same are one bar with all their names."""
    names: dict[tuple[Any, ...], list[str]] = {}
    for record in table:
        names.setdefault(tuple(record[name] for name in COLUMNS if name not in ("rung", "what")), []).append(
            record["rung"]
        )
    of_rung = {record["rung"]: record for record in table}
    return [
        Bar(
            labels=same,
            value=of_rung[same[0]][measure],
            low=of_rung[same[0]][f"{measure}_low"],
            high=of_rung[same[0]][f"{measure}_high"],
            is_marked=SOFT in same,
        )
        for same in names.values()
    ]


def _chance(examples: Sequence[Example]) -> tuple[str, float] | None:
    """The accuracy of always naming the commonest label of these rows; None without labels."""
    counts = Counter(example.label for example in examples if example.label is not None)
    return ("always the commonest label", max(counts.values()) / len(examples)) if counts else None


def _lines(table: Table) -> list[str]:
    """A line for each rung."""
    found = [f"{'':<24}{'rows':>6}  {'accuracy':<24}{'loss':<24}"]
    for record in table:
        accuracy, loss = (
            f"{record[name]:.3f} ({record[f'{name}_low']:.3f} to {record[f'{name}_high']:.3f})"
            for name in ("accuracy", "loss")
        )
        found.append(f"{record['rung']:<24}{record['rows']:>6}  {accuracy:<24}{loss:<24}")
    return found


def _share_init(ids_NP: Tensor, init_ids: Sequence[int | None], vocabulary: Vocabulary) -> float:
    """The share of virtual tokens, over all rows, that decode to their initial token."""
    same_V = vocabulary.same_V
    began_P = torch.tensor([-1 if i is None else int(same_V[i]) for i in init_ids], device=ids_NP.device)
    return float((same_V[ids_NP] == began_P).float().mean())


class _Scorer:
    """Scores the same rows with one prompt after another."""

    def __init__(self, backbone: Backbone, prompt: SoftPrompt, rows: Sequence[Row], options: ReadOptions) -> None:
        assert prompt.task is not None
        self.backbone, self.rows, self.task = backbone, list(rows), prompt.task
        self._options, self._done = options, list[tuple[Task, Tensor, RowScores]]()
        self.examples = self.encode(self.task)

    def encode(self, task: Task) -> list[Example]:
        """The rows as tokens under a task."""
        return self.backbone.coder(task).encode(self.rows)

    def __call__(self, name: str, task: Task, prompt: Any, chosen: Sequence[int] | None = None) -> RowScores | None:
        """Scores of all rows, or of chosen ones; None where nothing would stand before an answer."""
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
    prompt: SoftPrompt,
    backbone: Backbone,
    decoded_ids: Sequence[int] | Tensor,
    texts: Mapping[str, Sequence[str]],
    vocabulary: Vocabulary,
) -> list[tuple[str, Task, Any]]:
    """Name, task and prompt of every rung except the random ones.

    A decoding for each row, `[N, P]`, has no rung as text.
    """
    task = prompt.task
    assert task is not None
    nothing_0H = vocabulary.rows([])
    rungs: list[tuple[str, Task, Any]] = [(NONE, task.without_prompt(), nothing_0H)]
    start_PH = untrained(prompt, backbone, vocabulary)
    if start_PH is not None:
        began = [i for i in initial_ids(prompt, backbone, vocabulary) if i is not None]
        rungs.append((UNTRAINED, task, start_PH))
        rungs.append((INIT_TEXT, task.with_texts(slot_texts(task, backbone.tokenizer, began)), nothing_0H))
    rungs += [(name, task.with_texts(own), nothing_0H) for name, own in texts.items()]
    rungs.append((EMBEDDED, task, vocabulary.rows(decoded_ids)))
    if not isinstance(decoded_ids, Tensor):
        rungs.append((TEXT, task.with_texts(slot_texts(task, backbone.tokenizer, decoded_ids)), nothing_0H))
    return [*rungs, (SOFT, task, prompt.on(backbone.device))]


def _random(
    scorer: _Scorer, prompt: SoftPrompt, backbone: Backbone, num: int, seed: int, vocabulary: Vocabulary
) -> dict[str, Scores]:
    """Scores of random prompts: each row is read with two of them, and each of them reads as many rows.

    Where text and virtual tokens stand in different places, as behind a begin-of-text token or inside a chat's turn,
    random tokens are scored as text too.
    """
    chance, task = random.Random(seed), scorer.task
    count, a_row = len(scorer.rows), min(_RANDOM_A_ROW, num)
    order = list(range(count))
    chance.shuffle(order)
    is_moved = not prompt.is_conditioned and (task.chat_template or bool(frame_ids(backbone.tokenizer)[0]))
    parts: dict[str, list[tuple[list[int], RowScores]]] = {RANDOM: [], **({RANDOM_TEXT: []} if is_moved else {})}
    for k in range(num):
        chosen = sorted(order[i] for i in range(count) for j in range(a_row) if (i + j * (num // a_row)) % num == k)
        ids = chance.choices(vocabulary.plain_ids, k=prompt.num_virtual_tokens)
        as_text = task.with_texts(slot_texts(task, backbone.tokenizer, ids))
        for name, own_task, tensor in (
            (RANDOM, task, vocabulary.rows(ids)),
            (RANDOM_TEXT, as_text, vocabulary.rows([])),
        ):
            shown = f"{name}, {k + 1} of {num}"
            if name in parts and chosen and (scored := scorer(shown, own_task, tensor, chosen)) is not None:
                parts[name].append((chosen, scored))
    return {name: Scores.several(each, count) for name, each in parts.items() if each}


def slot_texts(task: Task, tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each slot of the template, given a token id for each virtual token."""
    texts, first = [], 0
    for size in Template.parse(task.template).slot_sizes:
        texts.append(tokenizer.decode(list(ids[first : first + size])))
        first += size
    return texts


def decoded_rows(
    prompt: SoftPrompt, backbone: Backbone, examples: Sequence[Example], batch_size: int, vocabulary: Vocabulary
) -> Tensor:
    """The nearest tokens, by cosine, of the prompt that a conditioned prompt makes for each row: ids `[N, P]`."""
    found = []
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
            {
                "rung": name,
                "what": _WORDS.get(name, "another text in the prompt's place"),
                "prompts": scores.num_prompts(name),
                "rows": scores.num_rows(name),
                "accuracy": accuracy.value,
                "accuracy_low": accuracy.low,
                "accuracy_high": accuracy.high,
                "loss": loss.value,
                "loss_low": loss.low,
                "loss_high": loss.high,
            }
        )
    return Table(COLUMNS, records)


def _behaviour(scores: Resampled) -> dict[str, Any] | None:
    """Behavioural fidelity: how much closer the decoding comes to the soft prompt's answers than random prompts do."""
    if not scores.has_labels:
        return None
    decoding, bases = decoding_of(scores)
    return least(scores.divergence_kept(decoding, SOFT, base) for base in bases).as_dict()


def decoding_of(scores: Resampled) -> tuple[str, list[str]]:
    """The rung that stands for the decoding, and the random rungs over which it must gain.

    Where text and virtual tokens stand in different places, a decoding as text must gain over random text, or its place
    alone might explain the gain; and over random tokens, or it might only repair the harm that the place does.
    """
    if TEXT not in scores.names:
        return EMBEDDED, [RANDOM]
    return TEXT, [name for name in (RANDOM, RANDOM_TEXT) if name in scores.names]
