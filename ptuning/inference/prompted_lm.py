"""`PromptedLM`, a frozen model that classifies, scores and generates with named soft prompts, many in one batch.

Knows nothing of training or of files other than saved prompts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, overload

import torch
from tqdm.auto import tqdm

from ptuning.data import FEWEST_BATCHES, Coder, Example, Row, Rows, Task, as_row, records, require_small, warn_of_cut
from ptuning.errors import DataError, PromptError
from ptuning.forward import BatchPrompt, ReadOptions, answer_log_probs, label_log_probs, memory_explained
from ptuning.inference.conversation import Conversation
from ptuning.inference.ensemble import Classification, Ensemble, combined
from ptuning.inference.generation import write, writing_options
from ptuning.inference.prompt_library import PromptLibrary, ReadyPrompt, as_prompt, base_revision, prompt_of_rows
from ptuning.inference.row_text import WritingOptions, texts_of
from ptuning.inference.streaming import Piece, stream
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt

Answer = TypeVar("Answer")

Choice: TypeAlias = str | Ensemble
"""What answers a row: a prompt's name, or an ensemble."""


@dataclass(frozen=True)
class Asked:
    """A row paired with one prompt."""

    row: int
    """The row's index."""
    prompt: ReadyPrompt
    """The prompt, as it was when the call started."""
    example: Example
    """The row's tokens."""


class PromptedLM:
    """A frozen language model that answers rows through named soft prompts.

    Rows with different prompts, lengths and templates share batches. Each prompt's prefix is run once, on first use,
    and its keys and values are kept for all later rows.

    Threads may share it: each call uses the prompts as they are when it starts, and leaves nothing on the model. Do not
    share a `Conversation`. Sampling draws from torch's generator, which all threads share.

    Args:
        backbone: The frozen model.
        prompts: Name -> a prompt, its directory or its name on the hub; or a directory of saved prompts or runs, each
            read on first use.
        allow_other_base: Whether to accept prompts tuned on another base model of the same width.
        batch_size: The most rows in a batch.
        progress: Whether to show a progress bar on stderr.
        max_batch_tokens: The most tokens in a batch, including padding, virtual and new tokens; None: no limit.

    Raises:
        PromptError: When a prompt was made for another base model.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Mapping[str, SoftPrompt | str | Path] | str | Path,
        *,
        allow_other_base: bool = False,
        batch_size: int = 32,
        progress: bool = False,
        max_batch_tokens: int | None = None,
    ) -> None:
        self.backbone = backbone
        self.options = ReadOptions(batch_size, max_batch_tokens, progress=progress)
        self.prompts = PromptLibrary(backbone, prompts, allow_other_base)

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        prompts: Mapping[str, SoftPrompt | str | Path] | str | Path,
        *,
        dtype: str = "auto",
        device: str = "auto",
        allow_other_base: bool = False,
        batch_size: int = 32,
        progress: bool = False,
        trust_remote_code: bool = False,
        max_batch_tokens: int | None = None,
        quantization: str = "none",
    ) -> "PromptedLM":
        """Loads a base model and saved prompts; a hub model at the revision that the prompts were tuned on.

        Args:
            base: A model directory, or a hub model's name.
            prompts: As above.
            dtype: Precision of the base model, as in `Backbone.from_pretrained`.
            device: The device to run on, as in `Backbone.from_pretrained`.
            allow_other_base: As above.
            batch_size: As above.
            progress: As above.
            trust_remote_code: Whether code that comes with the model may run.
            max_batch_tokens: As above.
            quantization: none, int8 or int4, as in `Backbone.from_pretrained`.
        """
        found: Mapping[str, SoftPrompt] | str | Path = (
            prompts if isinstance(prompts, str | Path) else {name: as_prompt(each) for name, each in prompts.items()}
        )
        backbone = Backbone.from_pretrained(
            base,
            dtype=dtype,
            device=device,
            revision=base_revision(found, str(base)),
            trust_remote_code=trust_remote_code,
            quantization=quantization,
        )
        return cls(
            backbone,
            found,
            allow_other_base=allow_other_base,
            batch_size=batch_size,
            progress=progress,
            max_batch_tokens=max_batch_tokens,
        )

    def classify(self, rows: Rows, prompt: Choice | Sequence[Choice] | None = None) -> list[Classification]:
        """The most likely label of each row, and every label's probability.

        Args:
            rows: One mapping per row, with the template's columns, or a text if it has one column; a data frame or data
                set of such rows.
            prompt: A prompt's name or an `Ensemble`, or one per row; None if there is only one prompt.

        Raises:
            DataError: For a row that lacks a column, is empty or does not fit.
            PromptError: For a prompt that is unknown, does not fit this base model, or has no labels.
            OutOfMemoryError: For a batch that does not fit into the device's memory.
        """
        rows = records(rows)
        choices = self._choices(len(rows), prompt)
        held = self.prompts.take(name for each in choices for name in each.prompts)
        _require_same_labels(choices, held)
        coders = {name: self._labels(each) for name, each in held.items()}
        asked = self._asked(rows, choices, held, Coder.encode_questions)

        def probabilities(batch: list[Asked]) -> list[dict[str, float]]:
            coders_B = [coders[each.prompt.name] for each in batch]
            examples, label_ids = [each.example for each in batch], [each.label_ids for each in coders_B]
            log_probs_BC = label_log_probs(self.backbone, _prompt_of(batch), examples, label_ids)
            rows = zip(coders_B, log_probs_BC.softmax(dim=1).tolist(), strict=True)
            return [dict(zip(each.labels, own[: len(each.labels)], strict=True)) for each, own in rows]

        by_row: dict[int, list[dict[str, float]]] = {}
        longest = max((coder.longest_label for coder in coders.values()), default=0)
        for each, own in zip(asked, self._in_batches(asked, probabilities, longest), strict=True):
            by_row.setdefault(each.row, []).append(own)
        return [combined(by_row[i], choice.combine) for i, choice in enumerate(choices)]

    def log_probs(self, rows: Rows, prompt: str | Sequence[str] | None = None) -> list[float]:
        """The log-probability of each row's own answer, in nats, summed over the answer's tokens.

        Args:
            rows: One mapping per row, with the template's and the answer's columns; a data frame or data set.
            prompt: A prompt's name, or one per row; None if there is only one prompt.

        Raises:
            DataError: As in `classify`, and for a row without its answer.
            PromptError: As in `classify`, and for an ensemble.
            OutOfMemoryError: As in `classify`.
        """
        rows = records(rows)
        choices = self._single(len(rows), prompt, "log_probs")
        held = self.prompts.take(name for each in choices for name in each.prompts)
        asked = self._asked(rows, choices, held, Coder.encode, with_answers=True)

        def log_probs(batch: list[Asked]) -> list[float]:
            collated = self.backbone.collate([each.example for each in batch])
            log_probs_B, _ = answer_log_probs(self.backbone, _prompt_of(batch), collated)
            return log_probs_B.tolist()

        return self._in_batches(asked, log_probs)

    @overload
    def generate(
        self,
        rows: Rows,
        prompt: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        stream: Literal[False] = False,
        stop_strings: Sequence[str] = (),
        **options: Any,
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        rows: Rows,
        prompt: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        *,
        stream: Literal[True],
        stop_strings: Sequence[str] = (),
        **options: Any,
    ) -> Iterator[Piece]: ...

    def generate(
        self,
        rows: Rows,
        prompt: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        stream: bool = False,
        stop_strings: Sequence[str] = (),
        **options: Any,
    ) -> list[str] | Iterator[Piece]:
        """Generates an answer for each row.

        Args:
            rows: One mapping per row, with the template's columns, or a text if it has one column; a data frame or data
                set of such rows.
            prompt: As in `log_probs`.
            max_new_tokens: The most tokens in an answer; None: as in the `generation_config` option, else 50.
            stream: Whether to yield `Piece(row, text)` as the text comes; a row's pieces joined are its answer.
            stop_strings: Texts that end an answer and are left out of it.
            options: Options of transformers' own `generate`, such as do_sample, temperature and num_beams; greedy by
                default.

        Raises:
            DataError: As in `classify`.
            PromptError: As in `log_probs`, and for options that `generate` cannot take.
            ModelError: For a model that cannot generate from embeddings.
            OutOfMemoryError: As in `classify`.
        """
        settings = writing_options(self.backbone, max_new_tokens, stop_strings, options)
        rows = records(rows)
        choices = self._single(len(rows), prompt, "generate")
        held = self.prompts.take(name for each in choices for name in each.prompts)

        def encode(coder: Coder, chosen: Sequence[Row]) -> list[Example]:
            return coder.encode_prompts(chosen, settings.max_new_tokens)

        asked = self._asked(rows, choices, held, encode)
        if stream:
            return self._streamed(asked, settings)

        def texts(batch: list[Asked]) -> list[str]:
            ids_BN = write(self.backbone, _prompt_of(batch), [each.example for each in batch], settings)
            return texts_of(self.backbone, ids_BN, settings)

        return self._in_batches(asked, texts, settings.max_new_tokens, settings.num_beams)

    def conversation(self, prompt: str | None = None) -> Conversation:
        """Starts a conversation; each turn continues from the cache of the turns before it.

        Args:
            prompt: The prompt's name; None if there is only one prompt.

        Raises:
            PromptError: As in `log_probs`.
            ModelError: For an encoder-decoder.
        """
        (choice,) = self._single(1, prompt, "conversation")
        (held,) = self.prompts.take(choice.prompts).values()
        return Conversation(self.backbone, prompt_of_rows([held]), self.backbone.coder(held.task))

    def task(self, name: str) -> Task:
        """The named prompt's task; raises `PromptError` for an unknown prompt or one without a task."""
        return self.prompts.take([name])[name].task

    def columns(self, name: str) -> tuple[str, ...]:
        """The columns that the named prompt's template needs."""
        return self.backbone.coder(self.task(name)).columns

    def _choices(self, num_rows: int, prompt: Choice | Sequence[Choice] | None) -> list[Ensemble]:
        """The ensemble that answers each row; a single prompt is an ensemble of one."""
        if prompt is None and len(self.prompts) == 1:
            prompt = next(iter(self.prompts))
        choices = [prompt] * num_rows if isinstance(prompt, str | Ensemble) else list(prompt or ())
        if len(choices) != num_rows:
            raise PromptError(
                f"{len(choices)} prompt names for {num_rows} rows", "a prompt's name, or one per row", "Name a prompt"
            )
        return [each if isinstance(each, Ensemble) else Ensemble((each,)) for each in choices]

    def _single(self, num_rows: int, prompt: Choice | Sequence[Choice] | None, what: str) -> list[Ensemble]:
        choices = self._choices(num_rows, prompt)
        if any(len(each.prompts) > 1 for each in choices):
            raise PromptError(f"{what} with an ensemble", "a prompt's name", "Ensembles classify only")
        return choices

    def _asked(
        self,
        rows: Sequence[Mapping[str, Any] | str],
        choices: Sequence[Ensemble],
        held: Mapping[str, ReadyPrompt],
        encode: Callable[[Coder, list[Row]], list[Example]],
        with_answers: bool = False,
    ) -> list[Asked]:
        """Each row paired with each of its prompts, in row order; rows of one prompt are encoded together."""
        pairs = [(i, name) for i, choice in enumerate(choices) for name in choice.prompts]
        examples: dict[tuple[int, str], Example] = {}
        for name, prompt in held.items():
            coder, its_rows = self.backbone.coder(prompt.task), [i for i, each in pairs if each == name]
            columns = prompt.task.columns if with_answers else coder.columns
            encoded = encode(coder, [as_row(rows[i], f"row {i}", columns) for i in its_rows])
            empty = [i for i, example in zip(its_rows, encoded, strict=True) if not example.ids]
            if empty:
                received = f"row {empty[0]} with no tokens before the answer (prompt {name!r})"
                raise DataError(received, "1 token or more", "Write some text, or put words into the template")
            examples.update(((i, name), example) for i, example in zip(its_rows, encoded, strict=True))
        return [Asked(i, held[name], examples[i, name]) for i, name in pairs]

    def _labels(self, prompt: ReadyPrompt) -> Coder:
        coder = self.backbone.coder(prompt.task)
        if not coder.labels:
            raise PromptError(
                f"classify with prompt {prompt.name!r}, which has no verbalizer", "labels", "Use generate"
            )
        return coder

    def _batches(self, asked: Sequence[Asked], num_new_tokens: int, num_beams: int) -> list[list[int]]:
        """Indices into `asked`, in batches of similar length that can be run together.

        Args:
            asked: Rows with their prompts.
            num_new_tokens: The most tokens that a row may grow by.
            num_beams: Beams per row for generation; 0 if rows are only read.
        """
        limit, examples = self.options.max_batch_tokens, [each.example for each in asked]
        options = replace(self.options, max_batch_tokens=limit and max(limit // max(num_beams, 1), 1))
        require_small(examples, options.max_batch_tokens, num_new_tokens, [f"row {each.row}" for each in asked])
        lengths = [each.prompt.prefix_length(each.example) for each in asked]
        groups: dict[Any, list[int]] = {}
        for i, each in enumerate(asked):
            own = each.prompt if each.prompt.source.is_conditioned else None
            alone = i if num_beams and len(asked) > 1 and not self.backbone.ignores_left_padding else None
            groups.setdefault((own, alone, lengths[i] is None), []).append(i)
        overhead = FEWEST_BATCHES if num_beams else self.backbone.overhead_tokens  # every step of a batch costs a run
        batches = []
        for group in groups.values():
            own_lengths = [lengths[i] or 0 for i in group]
            parts = options.batches([examples[i] for i in group], num_new_tokens, overhead, own_lengths)
            batches += [[group[i] for i in part] for part in parts]
        return batches

    def _in_batches(
        self,
        asked: Sequence[Asked],
        answer: Callable[[list[Asked]], Sequence[Answer]],
        num_new_tokens: int = 0,
        num_beams: int = 0,
    ) -> list[Answer]:
        """Answers in batches, and returns the answers in the order of `asked`."""
        warn_of_cut("answering", [each.example for each in asked])
        answers: dict[int, Answer] = {}
        with torch.no_grad(), tqdm(total=len(asked), unit="row", disable=not self.options.progress) as bar:
            for batch in self._batches(asked, num_new_tokens, num_beams):
                chosen = [asked[i] for i in batch]
                with memory_explained([each.example for each in chosen], num_new_tokens, max(num_beams, 1)):
                    answers.update(zip(batch, answer(chosen), strict=True))
                bar.update(len(batch))
        return [answers[i] for i in range(len(asked))]

    def _streamed(self, asked: Sequence[Asked], settings: WritingOptions) -> Iterator[Piece]:
        warn_of_cut("answering", [each.example for each in asked])
        prompted = []
        for places in self._batches(asked, settings.max_new_tokens, settings.num_beams):
            batch = [asked[i] for i in places]
            prompted.append((_prompt_of(batch), [each.row for each in batch], [each.example for each in batch]))
        return stream(self.backbone, prompted, settings)


def _prompt_of(batch: Sequence[Asked]) -> BatchPrompt:
    return prompt_of_rows([each.prompt for each in batch])


def _require_same_labels(choices: Sequence[Ensemble], held: Mapping[str, ReadyPrompt]) -> None:
    """Raises `PromptError` for an ensemble whose prompts have different labels."""
    for each in set(choices):
        if len({tuple(held[name].task.verbalizer or ()) for name in each.prompts}) != 1:
            raise PromptError(
                f"an ensemble of {', '.join(each.prompts)}",
                "prompts with the same labels, in the same order",
                "Choose prompts for one task",
            )
