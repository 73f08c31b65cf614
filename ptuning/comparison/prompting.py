"""Ways that only write text: the template's words, a person's instruction, labelled examples in front.

Knows nothing of training, and nothing of how examples are retrieved.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from ptuning.comparison.budget import tries_within
from ptuning.comparison.protocol import Fact, Facts, Job, SkippedError, Way, Writer, Writing, turn_column
from ptuning.comparison.reading import answer_losses, in_turn, label_scores, num_tokens, written_answers
from ptuning.comparison.storage import Saved, write_own
from ptuning.data import Row, Task, Template
from ptuning.errors import DataError
from ptuning.model import Backbone

MOST_TOKENS = 2048  # of all demonstrations in a text
_FEWER = (2, 1)  # demonstrations, where the smallest wanted number does not fit

READS_TEXT: dict[str, Any] = {
    "many_tasks": Fact(True, "the request holds the task"),
    "readable": Fact(True, "it is text"),
    "works_in_vllm": Fact(True, "an ordinary text request"),
}
"""Facts of every way that only writes text."""


def asked(words: Template, row: Row) -> str:
    """A row as the template asks it."""
    return "".join(map(str, words.fill(row.values)))


def demonstration(task: Task, row: Row) -> str:
    """A row with its answer, as it stands in front of another."""
    answer = task.answer_text(row.values)
    words = Template.parse(task.template).without_prompt()
    return f"{asked(words, row)}{task.verbalizer[answer] if task.verbalizer else answer}\n\n"


def column_for(task: Task) -> str:
    """A column for the demonstrations that the task's rows do not have."""
    name = "demonstrations"
    while name in task.columns:
        name += "_"
    return name


def with_demonstrations(task: Task) -> Task:
    """The task's words behind a column of demonstrations; where a row is too long, the first ones lose text."""
    column, words = column_for(task), task.without_prompt()
    return replace(words, template=f"{{{column}}}{words.template}", max_length=None, cut_column=column, cut_side="left")


@dataclass
class Prompted(Writer):
    """Words, with or without demonstrations."""

    backbone: Backbone
    """The frozen model."""
    task: Task
    """The words, with a column for the demonstrations where there are some."""
    show: Callable[[Sequence[Row]], list[str]] | None = None
    """The demonstrations of each row; None: there are none."""
    shown: str | None = None
    """The demonstrations, where they are the same for all rows."""
    extra_tokens: float = 0.0
    chosen: Mapping[str, str] = field(default_factory=dict)

    def label_scores(self, rows: Sequence[Row]) -> Tensor:
        """As in `Fitted`."""
        return label_scores(self.backbone, self.task, self.filled(rows))

    def answers(self, rows: Sequence[Row], writing: Writing) -> list[str]:
        """As in `Writer`."""
        return written_answers(self.backbone, self.task, self.filled(rows), writing)

    def answer_losses(self, rows: Sequence[Row]) -> Tensor:
        """As in `Writer`."""
        return answer_losses(self.backbone, self.task, self.filled(rows))

    @property
    def asked_task(self) -> Task:
        """The task whose columns a row must have: without that of the demonstrations."""
        if self.show is None and self.shown is None:
            return self.task
        parts = Template.parse(self.task.template).parts[1:]
        return replace(self.task, template=Template(parts).text, cut_column=None)

    def filled(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows with their demonstrations."""
        if self.show is None and self.shown is None:
            return rows
        texts = self.show(rows) if self.show else [self.shown or ""] * len(rows)
        column = next(iter(Template.parse(self.task.template).field_names))
        return [Row({**row.values, column: text}, row.where) for row, text in zip(rows, texts, strict=True)]

    def save(self, directory: Path) -> None:
        """As in `Fitted`."""
        write_own(directory, {"kind": "prompting", "task": vars(self.asked_task), "shown": self.shown})

    @classmethod
    def load(cls, saved: Saved) -> Self:
        """Brings it back."""
        shown = saved.own.get("shown")
        return cls(saved.base, saved.task if shown is None else with_demonstrations(saved.task), shown=shown)

    def with_costs(self, job: Job) -> "Prompted":
        """The same with the tokens that it adds to a request."""
        return replace(self, extra_tokens=self.added_tokens(job))

    def added_tokens(self, job: Job) -> float:
        """The tokens that it adds to a request, on average over the rows that choose."""
        rows = job.choosing
        own = num_tokens(self.backbone, self.task, self.filled(rows))
        return own - num_tokens(self.backbone, job.words, rows)


class ZeroShot(Way):
    """The template's words alone."""

    name, title = "zero-shot", "the template's words alone"
    reads_rows, depends_on_chance = False, False
    facts: ClassVar[Facts] = Facts(learns=False, rows_count_at_once=Fact(True, "it uses no rows"), **READS_TEXT)

    def fit(self, job: Job) -> Prompted:
        """As in `Way`."""
        return Prompted(job.backbone, job.words)


class Instruction(Way):
    """The words with what a person would write in front."""

    name, title = "instruction", "your instruction in front of the words"
    reads_rows, depends_on_chance = False, False
    facts: ClassVar[Facts] = Facts(learns=False, rows_count_at_once=Fact(True, "it uses no rows"), **READS_TEXT)

    def require(self, job: Job) -> None:
        """As in `Way`."""
        if not job.instruction:
            raise SkippedError("no compare.instruction", "a person's text", "Write one in the config")

    def fit(self, job: Job) -> Prompted:
        """As in `Way`."""
        escaped = (job.instruction or "").replace("{", "{{").replace("}", "}}")
        task = replace(job.words, template=escaped + job.words.template)
        return Prompted(job.backbone, task).with_costs(job)


class FewShot(Way):
    """Training rows with their answers in front; validation rows choose how many and which draw."""

    name, title = "few-shot", "labelled examples in the text, the same for every row"
    facts: ClassVar[Facts] = Facts(
        learns=False, rows_count_at_once=Fact(True, "change the examples in the text"), **READS_TEXT
    )

    def fit(self, job: Job) -> Prompted:
        """As in `Way`."""
        task, tried = with_demonstrations(job.task), list[tuple[float, Prompted]]()
        draws = itertools.product(fitting_numbers(job), range(job.effort.num_draws))
        for number, draw in tries_within(job, draws):
            rows = in_turn(job.train, turn_column(job.task), seed=1000 * job.seed + draw)[:number]
            shown = "".join(demonstration(job.task, row) for row in rows)
            chosen = {"examples": str(number), "draw": str(draw)}
            prompted = Prompted(job.backbone, task, shown=shown, chosen=chosen)
            tried.append((job.score(prompted), prompted))
        return max(tried, key=lambda each: each[0])[1].with_costs(job)


def fitting_numbers(job: Job) -> list[int]:
    """How many demonstrations may stand in a text; arguments and errors as in `numbers_that_fit`."""
    lengths = num_tokens_of([demonstration(job.task, row) for row in job.train], job.backbone)
    return numbers_that_fit(job.backbone, lengths, job.effort.demonstrations, max(lengths), "examples")


def num_tokens_of(texts: Sequence[str], backbone: Backbone) -> list[int]:
    """The tokens of each text."""
    return [len(ids) for ids in backbone.tokenizer(list(texts))["input_ids"]]


def numbers_that_fit(
    backbone: Backbone, lengths: Sequence[int], wanted: Sequence[int], beside: int, name: str
) -> list[int]:
    """How many texts may stand in front of a row: as wanted, so far as there are texts and the context allows.

    Args:
        backbone: The model.
        lengths: The tokens of each text.
        wanted: The numbers that are tried.
        beside: Tokens that are kept for the row.
        name: What the texts are called.

    Raises:
        DataError: Where not even one fits.
    """
    limit, mean = MOST_TOKENS, sum(lengths) / len(lengths)
    if backbone.max_positions is not None:
        limit = min(limit, backbone.max_positions - beside)
    fits = [number for number in wanted if number <= len(lengths) and number * mean <= limit]
    fits = fits or [number for number in _FEWER if number <= len(lengths) and number * mean <= limit][:1]
    if not fits:
        raise DataError(f"{name} of {mean:.0f} tokens", f"at most {limit} for one", "Leave this way out")
    return fits
