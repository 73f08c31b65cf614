"""What a way to do a task is: it is fitted to rows, and then scores a row's labels, or writes its answer.

Knows nothing of any single way, or of how ways are compared.
"""

import importlib.util
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ptuning.config import RunConfig
from ptuning.data import Row, Task
from ptuning.errors import PTuningError
from ptuning.model import Backbone

CARD = "README.md"
"""The card of a saved way, for readers."""
_RATES = (1.0, 1 / 3, 3.0, 1 / 10, 10.0)  # times a way's own rate, in the order in which they are tried


class SkippedError(PTuningError):
    """A way that cannot be tried here: a package is missing, or it does not apply to the task."""


def require_package(module: str, package: str) -> None:
    """Raises `SkippedError` where a package is missing."""
    if importlib.util.find_spec(module) is None:
        raise SkippedError(f"{package}, which is not installed", "it", "pip install 'ptuning[compare]'")


@dataclass(frozen=True)
class Fact:
    """A yes or no about a way that is known and not measured."""

    is_so: bool
    """The answer."""
    reason: str
    """Why, in a few words."""


@dataclass(frozen=True)
class Facts:
    """What is known of a way, whatever it scores."""

    learns: bool
    """Whether it fits parameters to the training rows."""
    many_tasks: Fact
    """Whether one copy of the base serves many tasks at once."""
    rows_count_at_once: Fact
    """Whether a new row counts without fitting again."""
    readable: Fact
    """Whether a person can read what makes the answers."""
    works_in_vllm: Fact
    """Whether it works behind vLLM as it is."""


@dataclass(frozen=True)
class IndexCosts:
    """What the index costs of a way that looks things up for each row."""

    num_bytes: int
    """What it takes in memory."""
    seconds: float
    """How long building it took."""
    milliseconds: float
    """How long it takes to find what stands in front of one row."""


@dataclass(frozen=True)
class Effort:
    """How much each way may try; the same for all."""

    num_rates: int = 1
    """Learning rates."""
    num_draws: int = 3
    """Draws of demonstrations."""
    demonstrations: tuple[int, ...] = (4, 8, 16)
    """How many demonstrations stand in a text."""
    passages: tuple[int, ...] = (1, 2, 4)
    """How many passages of documents stand in a text."""
    num_choosing_rows: int = 200
    """Validation rows that choose."""
    num_evaluations: int = 10
    """How often these are read in a training, to keep the best step."""
    num_timings: int = 5
    """How often a measurement of time is repeated."""
    seconds: float | None = None
    """Time to fit a way with one seed; None: the config's steps, and all alternatives."""
    num_verdict_rows: int = 64
    """Validation rows on which a soft prompt is judged, each of which is read about ten times; 0: it is not judged."""

    def rates(self, own: float) -> list[float]:
        """The rates that a way tries.

        Args:
            own: What suits it by default.
        """
        return [own * each for each in _RATES[: self.num_rates]]


@dataclass(frozen=True)
class Writing:
    """When a written answer ends, beside the model's end-of-text tokens; the same for all ways."""

    max_new_tokens: int
    """The most tokens that it has."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end it and are left out of it."""


@dataclass(frozen=True)
class Job:
    """What a way is fitted with; nothing here holds a test row."""

    backbone: Backbone
    """The frozen model."""
    config: RunConfig
    """The task, and how prompts are trained."""
    train: Sequence[Row]
    """Training rows."""
    validation: Sequence[Row]
    """Rows that choose."""
    seed: int
    """Seed of all that depends on chance."""
    directory: Path
    """Where files may be kept while it is fitted."""
    effort: Effort = field(default_factory=Effort)
    """How much may be tried."""
    instruction: str | None = None
    """What a person would write in front of each row."""
    passages: Sequence[str] = ()
    """The passages of a person's documents."""
    save_weights: bool = False
    """Whether weights are saved that are changed in place."""
    started: float = field(default_factory=time.perf_counter)
    """When fitting began, by `time.perf_counter`: the budget counts from there."""

    @property
    def task(self) -> Task:
        """The task, with virtual tokens."""
        return self.config.data.task

    @property
    def words(self) -> Task:
        """The task's words alone."""
        return self.task.without_prompt()

    @property
    def choosing(self) -> Sequence[Row]:
        """The validation rows that choose, drawn at random: a file may be sorted by label."""
        return some_of(self.validation, self.effort.num_choosing_rows)

    @property
    def seconds_used(self) -> float:
        """Time since fitting began."""
        return time.perf_counter() - self.started

    def score(self, fitted: "Fitted") -> float:
        """What a choice is made by, on the rows that choose; the higher the better.

        It is the accuracy, or for texts to write minus the mean loss of the expected answers, in nats a token: reading
        an answer costs one pass, and writing one costs a pass for each of its tokens.
        """
        if self.task.is_classification:
            return accuracy(fitted, self.task, self.choosing)
        assert isinstance(fitted, Writer)
        return -float(fitted.answer_losses(self.choosing).mean())


class Fitted(ABC):
    """A way that has been fitted."""

    num_trained: int = 0
    """Parameters that were fitted."""
    extra_tokens: float = 0.0
    """Tokens that it adds to a request, on average."""
    chosen: Mapping[str, str] = {}
    """What validation rows chose."""
    index_costs: IndexCosts | None = None
    """What its index costs; None: it has none."""
    least_seconds: float = 0.0
    """Seconds that fitting took at least, those of an earlier call included that was interrupted."""
    is_saved: bool = True
    """Whether what `save` writes is enough to bring it back."""

    @abstractmethod
    def label_scores(self, rows: Sequence[Row]) -> Tensor:
        """A score for each label of each row, `[N, C]`: log-probabilities up to a constant of the row."""

    def text_loss(self, ids: Sequence[Sequence[int]]) -> float | None:
        """The mean loss of a token of a general text, where fitting changed the base's weights; None: it left them.

        Args:
            ids: The text's pieces.
        """
        return None

    def verdict(self, rows: Sequence[Row]) -> Mapping[str, str] | None:
        """The inspector's word and sentence on whether what was learned can be read; None: there is nothing to inspect.

        Args:
            rows: Rows with answers; test rows are left alone.
        """
        return None

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Writes what must be shipped beside the base model."""

    def bytes_to_ship(self, directory: Path) -> int:
        """The bytes of what must be shipped beside the base model; cards for readers do not count.

        Args:
            directory: Where `save` wrote.
        """
        files = [each for each in directory.rglob("*") if each.is_file() and each.name != CARD]
        return sum(each.stat().st_size for each in files)


class Writer(Fitted):
    """A fitted way that can write texts too."""

    @abstractmethod
    def answers(self, rows: Sequence[Row], writing: Writing) -> list[str]:
        """The answer that it writes to each row, greedily; the rows need no answers."""

    @abstractmethod
    def answer_losses(self, rows: Sequence[Row]) -> Tensor:
        """The loss of each row's expected answer, `[N]`: a mean over its tokens but for the one that ends it, in nats.

        What ends an answer is another token in a text with examples than behind a trained prompt.
        """


class Way(ABC):
    """A way to do a task; it has no state."""

    name: ClassVar[str]
    """Its name, in commands and files."""
    title: ClassVar[str]
    """What it does, in one phrase."""
    facts: ClassVar[Facts]
    """What is known of it."""
    reads_rows: ClassVar[bool] = True
    """Whether it reads training rows."""
    depends_on_chance: ClassVar[bool] = True
    """Whether it gives something else with another seed, on the same rows."""
    writes: ClassVar[bool] = True
    """Whether it can write texts: what it fits is then a `Writer`."""

    def require(self, job: Job) -> None:  # noqa: B027 - most ways can always be tried
        """Raises `SkippedError` where it cannot be tried."""

    @abstractmethod
    def fit(self, job: Job) -> Fitted:
        """Fits it, and lets validation rows choose what there is to choose."""


def some_of(rows: Sequence[Row], most: int) -> list[Row]:
    """Some of the rows, drawn at random, in their own order; the same ones each time."""
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), min(most, len(rows))))]


def labels_of(task: Task, rows: Sequence[Row]) -> list[int]:
    """The index of each row's label in the verbalizer."""
    places = {label: i for i, label in enumerate(task.verbalizer or ())}
    return [places[row.values[task.label_column]] for row in rows]


def turn_column(task: Task) -> str | None:
    """The column whose values take turns where some rows are drawn; None where answers are no labels."""
    return task.label_column if task.is_classification else None


def accuracy(fitted: Fitted, task: Task, rows: Sequence[Row]) -> float:
    """The share of the rows whose own label has the highest score."""
    predicted = fitted.label_scores(rows).argmax(dim=1).tolist()
    return sum(own == each for own, each in zip(labels_of(task, rows), predicted, strict=True)) / len(rows)
