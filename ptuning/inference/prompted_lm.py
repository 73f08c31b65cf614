"""`PromptedLM`: a frozen model with named soft prompts that classifies, scores and generates, many prompts in a batch.

Knows nothing of training or of files other than saved prompts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, overload

import torch
from tqdm import tqdm

from ptuning.data import FEWEST_BATCHES, Coder, Example, Row, Task, as_row, by_length, require_small, warn_of_cut
from ptuning.errors import DataError, PromptError
from ptuning.forward import Prompt, answer_scores, label_scores
from ptuning.inference.conversation import Conversation
from ptuning.inference.ensemble import Classification, Ensemble, combined
from ptuning.inference.generation import settings_of, write
from ptuning.inference.prompt_library import PromptLibrary, as_prompt, base_revision
from ptuning.inference.row_text import Settings, texts_of
from ptuning.inference.streaming import Piece, stream
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt

Answer = TypeVar("Answer")


Choice: TypeAlias = str | Ensemble
"""What answers a row: a prompt's name, or several."""


@dataclass(frozen=True)
class Asked:
    """A row put to the model with one prompt."""

    row: int
    """The row's number."""
    name: str
    """The prompt's name."""
    example: Example
    """The row's tokens."""


class PromptedLM:
    """A frozen language model that answers rows through named soft prompts.

    Rows with different prompts, of different lengths and templates, share batches. A prompt's leading virtual tokens
    are run once, when it is first used, and what the model keeps of them is held for all later rows.

    Args:
        backbone: The frozen model.
        prompts: Name -> prompt, or a directory of saved prompts (or of runs), each read when it is first used.
        allow_other_base: Whether prompts tuned on another base model of the same width are taken.
        batch_size: The most rows read at once.
        progress: Whether to show a progress bar on stderr.
        max_batch_tokens: The most tokens read at once, padding, virtual and new tokens included; None: no limit.

    Raises:
        PromptError: When a prompt was made for another base model.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Mapping[str, SoftPrompt | str | Path] | str | Path,
        allow_other_base: bool = False,
        batch_size: int = 32,
        progress: bool = False,
        max_batch_tokens: int | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_batch_tokens", max_batch_tokens)):
            if value is not None and value < 1:
                raise PromptError(f"{name}={value}", "a whole number above 0", "Raise it")
        self.backbone, self.batch_size, self.progress = backbone, batch_size, progress
        self.max_batch_tokens = max_batch_tokens
        self.prompts = PromptLibrary(backbone, prompts, allow_other_base)

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        prompts: Mapping[str, SoftPrompt | str | Path] | str | Path,
        dtype: str = "auto",
        device: str = "auto",
        allow_other_base: bool = False,
        batch_size: int = 32,
        progress: bool = False,
        trust_remote_code: bool = False,
        max_batch_tokens: int | None = None,
        quantization: str = "none",
    ) -> "PromptedLM":
        """Loads a base model and saved prompts.

        Args:
            base: A model directory, or a hub model's name.
            prompts: As above.
            dtype: Precision of the base model, as in `Backbone.from_pretrained`.
            device: Where it runs.
            allow_other_base: As above.
            batch_size: As above.
            progress: As above.
            trust_remote_code: Whether code that comes with the model may run.
            max_batch_tokens: As above.
            quantization: none, or int8, as in `Backbone.from_pretrained`.

        A hub model is loaded at the revision that the prompts were tuned on.
        """
        found: Mapping[str, SoftPrompt] | str | Path = (
            prompts if isinstance(prompts, str | Path) else {name: as_prompt(each) for name, each in prompts.items()}
        )
        revision = base_revision(found, str(base))
        backbone = Backbone.from_pretrained(base, dtype, device, revision, trust_remote_code, quantization)
        return cls(backbone, found, allow_other_base, batch_size, progress, max_batch_tokens)

    def classify(
        self, rows: Sequence[Mapping[str, Any]], prompt: Choice | Sequence[Choice] | None = None
    ) -> list[Classification]:
        """The most likely label of each row, and every label's probability.

        Args:
            rows: The template's columns, one mapping a row.
            prompt: A prompt's name or an `Ensemble`, or one a row; None where only one prompt is held.

        Raises:
            DataError: For a row that lacks a column, holds no text or has no room.
            PromptError: For a prompt that is not held, cannot be used with this base, or has no labels.
        """
        choices = self._choices(len(rows), prompt)
        asked = self._asked(rows, choices, Coder.encode_questions)
        labels = {name: self._labels(name) for name in dict.fromkeys(each.name for each in asked)}

        def scores(batch: list[Asked]) -> list[dict[str, float]]:
            label_ids = [labels[each.name].label_ids for each in batch]
            examples = [each.example for each in batch]
            scores_BC = label_scores(self.backbone, self._prompt_of(batch), examples, label_ids).softmax(dim=1)
            named = zip((labels[each.name].labels for each in batch), scores_BC.tolist(), strict=True)
            return [dict(zip(names, its_scores[: len(names)], strict=True)) for names, its_scores in named]

        by_row: dict[int, list[dict[str, float]]] = {}
        longest = max((coder.longest_label for coder in labels.values()), default=0)
        for each, its_scores in zip(asked, self._in_batches(asked, scores, longest), strict=True):
            by_row.setdefault(each.row, []).append(its_scores)
        return [combined(by_row[i], choice.combine) for i, choice in enumerate(choices)]

    def score(self, rows: Sequence[Mapping[str, Any]], prompt: str | Sequence[str] | None = None) -> list[float]:
        """The log-probability of each row's own answer, in nats, summed over the answer's tokens.

        Args:
            rows: The template's and the answer's columns.
            prompt: A prompt's name, or one a row; None where only one prompt is held.

        Raises:
            DataError: As in `classify`, and for a row without its answer.
            PromptError: As in `classify`, and for an ensemble.
        """
        asked = self._asked(rows, self._single(len(rows), prompt, "score"), Coder.encode, with_answers=True)

        def scores(batch: list[Asked]) -> list[float]:
            collated = self.backbone.collate([each.example for each in batch])
            scores_B, _ = answer_scores(self.backbone, self._prompt_of(batch), collated)
            return scores_B.tolist()

        return self._in_batches(asked, scores)

    @overload
    def generate(
        self,
        rows: Sequence[Mapping[str, Any]],
        prompt: str | Sequence[str] | None = None,
        max_new_tokens: int = 50,
        stream: Literal[False] = False,
        stop_strings: Sequence[str] = (),
        **options: Any,
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        rows: Sequence[Mapping[str, Any]],
        prompt: str | Sequence[str] | None = None,
        max_new_tokens: int = 50,
        *,
        stream: Literal[True],
        stop_strings: Sequence[str] = (),
        **options: Any,
    ) -> Iterator[Piece]: ...

    def generate(
        self,
        rows: Sequence[Mapping[str, Any]],
        prompt: str | Sequence[str] | None = None,
        max_new_tokens: int = 50,
        stream: bool = False,
        stop_strings: Sequence[str] = (),
        **options: Any,
    ) -> list[str] | Iterator[Piece]:
        """Writes an answer to each row.

        Args:
            rows: The template's columns.
            prompt: As in `score`.
            max_new_tokens: The most tokens an answer may have.
            stream: Whether to yield `Piece(row, text)` as the text comes; a row's pieces joined are its answer.
            stop_strings: Texts that end an answer, left out of it.
            options: For transformers' own `generate`: do_sample, temperature, num_beams and so on; greedy by default.

        Raises:
            DataError: As in `classify`.
            PromptError: As in `score`, and for options that `generate` cannot take.
            ModelError: For a model that transformers cannot write with from embeddings.
        """
        settings = settings_of(self.backbone, max_new_tokens, stop_strings, options)

        def encode(coder: Coder, chosen: Sequence[Row]) -> list[Example]:
            return coder.encode_prompts(chosen, max_new_tokens)

        asked = self._asked(rows, self._single(len(rows), prompt, "generate"), encode)
        if stream:
            return self._streamed(asked, settings)

        def texts(batch: list[Asked]) -> list[str]:
            ids_BN = write(self.backbone, self._prompt_of(batch), [each.example for each in batch], settings)
            return texts_of(self.backbone, ids_BN, settings)

        return self._in_batches(asked, texts, max_new_tokens, settings.num_beams)

    def conversation(self, prompt: str | None = None) -> Conversation:
        """Begins a conversation whose turns go on from the cache of those before them.

        Args:
            prompt: The prompt's name; None where only one is held.

        Raises:
            PromptError: As in `score`.
            ModelError: For an encoder-decoder.
        """
        (choice,) = self._single(1, prompt, "conversation")
        name = choice.prompts[0]
        return Conversation(self.backbone, self._prompt_of_names([name]), self.backbone.coder(self.task(name)))

    def task(self, name: str) -> Task:
        """The named prompt's task; raises `PromptError` for one that is not held or has none."""
        self._require_held([name])
        task = self.prompts[name].task
        if task is None:
            raise PromptError(
                f"prompt {name!r} without a task (PEFT does not save one)",
                "a template",
                "Give it one: dataclasses.replace(prompt, task=ptuning.Task(template, ...))",
            )
        return task

    def columns(self, name: str) -> tuple[str, ...]:
        """The columns that the named prompt's template needs."""
        return self.backbone.coder(self.task(name)).columns

    def _choices(self, num_rows: int, prompt: Choice | Sequence[Choice] | None) -> list[Ensemble]:
        """What answers each row, a single prompt as an ensemble of one."""
        if prompt is None and len(self.prompts) == 1:
            prompt = next(iter(self.prompts))
        choices = [prompt] * num_rows if isinstance(prompt, str | Ensemble) else list(prompt or ())
        ensembles = [each if isinstance(each, Ensemble) else Ensemble((each,)) for each in choices]
        self._require_held([name for each in ensembles for name in each.prompts])
        if len(ensembles) != num_rows:
            raise PromptError(
                f"{len(choices)} prompt names for {num_rows} rows", "a prompt's name, or one a row", "Name a prompt"
            )
        for each in set(ensembles):
            if len({tuple(self.task(name).verbalizer or ()) for name in each.prompts}) != 1:
                raise PromptError(
                    f"an ensemble of {', '.join(each.prompts)}",
                    "prompts with the same labels, in the same order",
                    "Choose prompts for one task",
                )
        return ensembles

    def _require_held(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in self.prompts]
        if unknown:
            held = f"one of {', '.join(self.prompts)}" if len(self.prompts) else "a prompt, of which none is held"
            raise PromptError(f"prompt={unknown[0]!r}", held, "Name a prompt that was loaded, or add it to lm.prompts")

    def _single(self, num_rows: int, prompt: Choice | Sequence[Choice] | None, what: str) -> list[Ensemble]:
        choices = self._choices(num_rows, prompt)
        if any(len(each.prompts) > 1 for each in choices):
            raise PromptError(f"{what} with an ensemble", "a prompt's name", "Ensembles classify only")
        return choices

    def _asked(
        self,
        rows: Sequence[Mapping[str, Any]],
        choices: Sequence[Ensemble],
        encode: Callable[[Coder, list[Row]], list[Example]],
        with_answers: bool = False,
    ) -> list[Asked]:
        """The rows put to each of their prompts, in the rows' order; those of one prompt are encoded together."""
        pairs = [(i, name) for i, choice in enumerate(choices) for name in choice.prompts]
        examples: dict[tuple[int, str], Example] = {}
        for name in dict.fromkeys(name for _, name in pairs):
            coder, mine = self.backbone.coder(self.task(name)), [i for i, each in pairs if each == name]
            columns = self.task(name).columns if with_answers else coder.columns
            chosen = encode(coder, [as_row(rows[i], f"row {i}", columns) for i in mine])
            empty = [i for i, example in zip(mine, chosen, strict=True) if not example.ids]
            if empty:
                received = f"row {empty[0]}, of which nothing stands before the answer (prompt {name!r})"
                raise DataError(received, "a token or more", "Write some text, or put words into the template")
            examples.update(((i, name), example) for i, example in zip(mine, chosen, strict=True))
        return [Asked(i, name, examples[i, name]) for i, name in pairs]

    def _labels(self, name: str) -> Coder:
        coder = self.backbone.coder(self.task(name))
        if not coder.labels:
            raise PromptError(f"classify with prompt {name!r}, which has no verbalizer", "labels", "Use generate")
        return coder

    def _batches(self, asked: Sequence[Asked], num_new_tokens: int, num_beams: int) -> list[list[int]]:
        """Places of what is asked in batches that can be run together, of similar length.

        Args:
            asked: What is asked.
            num_new_tokens: What each row may grow by.
            num_beams: Beams a row, where rows are written on; 0 where they are only read.
        """
        most = self.max_batch_tokens and self.max_batch_tokens // max(num_beams, 1)
        require_small([each.example for each in asked], most, num_new_tokens, [f"row {each.row}" for each in asked])
        num_run = [self.prompts.num_run(each.name, each.example) for each in asked]
        groups: dict[Any, list[int]] = {}
        for i, each in enumerate(asked):
            own = each.name if self.prompts[each.name].is_conditioned else None
            alone = i if num_beams and len(asked) > 1 and not self.backbone.heeds_mask else None
            groups.setdefault((own, alone, num_run[i] is None), []).append(i)
        overhead = FEWEST_BATCHES if num_beams else self.backbone.overhead_tokens  # each step of writing costs a run
        limits = (self.batch_size, most, num_new_tokens, overhead)
        return [
            [group[i] for i in batch]
            for group in groups.values()
            for batch in by_length([asked[i].example for i in group], *limits, [num_run[i] or 0 for i in group])
        ]

    def _in_batches(
        self,
        asked: Sequence[Asked],
        answer: Callable[[list[Asked]], Sequence[Answer]],
        num_new_tokens: int = 0,
        num_beams: int = 0,
    ) -> list[Answer]:
        """Answers what is asked in batches, and gives the answers back in its order."""
        warn_of_cut("answering", [each.example for each in asked])
        answers: dict[int, Answer] = {}
        with torch.no_grad(), tqdm(total=len(asked), unit="row", disable=not self.progress) as bar:
            for batch in self._batches(asked, num_new_tokens, num_beams):
                answers.update(zip(batch, answer([asked[i] for i in batch]), strict=True))
                bar.update(len(batch))
        return [answers[i] for i in range(len(asked))]

    def _streamed(self, asked: Sequence[Asked], settings: Settings) -> Iterator[Piece]:
        warn_of_cut("answering", [each.example for each in asked])
        places = self._batches(asked, settings.options["max_new_tokens"], settings.num_beams)
        prompted = []
        for batch in ([asked[i] for i in each] for each in places):
            prompted.append((self._prompt_of(batch), [each.row for each in batch], [each.example for each in batch]))
        return stream(self.backbone, prompted, settings)

    def _prompt_of(self, batch: Sequence[Asked]) -> Prompt:
        return self._prompt_of_names([each.name for each in batch])

    def _prompt_of_names(self, names: list[str]) -> Prompt:
        """What the forward pass takes for rows with these prompts; a conditioned one comes with no other."""
        if self.prompts[names[0]].is_conditioned:
            return self.prompts.ready(names[0]).prompt
        return self.prompts.of_rows(names)
