"""Ways that only write text: the template's words, a person's instruction, labelled examples in front.

Knows nothing of training, and nothing of how examples are retrieved.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ptuning.comparison.protocol import Fact, Facts, Job, SkippedError, Way, Writer, Writing, turn_column
from ptuning.comparison.reading import answer_losses, in_turn, label_scores, num_tokens, written_answers
from ptuning.data import Row, Task, Template
from ptuning.errors import DataError
from ptuning.files import whole_file
from ptuning.model import Backbone

OWN_FILE = "way.json"
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
        write_own(directory, {"kind": "prompting", "task": vars(self.task), "shown": self.shown})

    def with_costs(self, job: Job) -> "Prompted":
        """The same with the tokens that it adds to a request."""
        rows = job.choosing
        own = num_tokens(self.backbone, self.task, self.filled(rows))
        return replace(self, extra_tokens=own - num_tokens(self.backbone, job.words, rows))


def write_own(directory: Path, content: Mapping[str, Any]) -> None:
    """Writes what a way is read back from."""
    with whole_file(directory / OWN_FILE) as beside:
        beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
        for number in fitting_numbers(job):
            for draw in range(job.effort.num_draws):
                rows = in_turn(job.train, turn_column(job.task), seed=1000 * job.seed + draw)[:number]
                shown = "".join(demonstration(job.task, row) for row in rows)
                chosen = {"examples": str(number), "draw": str(draw)}
                prompted = Prompted(job.backbone, task, shown=shown, chosen=chosen)
                tried.append((job.score(prompted), prompted))
        return max(tried, key=lambda each: each[0])[1].with_costs(job)


def fitting_numbers(job: Job) -> list[int]:
    """How many demonstrations may stand in a text: as wanted, so far as the rows and the context allow.

    Raises:
        DataError: Where not even one fits.
    """
    texts = [demonstration(job.task, row) for row in job.train]
    lengths = [len(ids) for ids in job.backbone.tokenizer(texts)["input_ids"]]
    limit, mean = MOST_TOKENS, sum(lengths) / len(lengths)
    if job.backbone.max_positions is not None:  # a row beside them is as long as the longest demonstration
        limit = min(limit, job.backbone.max_positions - max(lengths))
    fits = [number for number in job.effort.demonstrations if number <= len(texts) and number * mean <= limit]
    fits = fits or [number for number in _FEWER if number <= len(texts) and number * mean <= limit][:1]
    if not fits:
        raise DataError(f"examples of {mean:.0f} tokens", f"at most {limit} for one", "Leave this way out")
    return fits


def base_noted(directory: Path, backbone: Backbone, writing: Writing | None = None) -> None:
    """Adds to what a way is read back from which base it belongs to, and when an answer that it writes ends."""
    dtype, known = str(backbone.dtype).removeprefix("torch."), vars(backbone.fingerprint)
    content = json.loads((directory / OWN_FILE).read_text(encoding="utf-8"))
    ends = {} if writing is None else {"writing": vars(writing)}
    write_own(directory, {"task": {}, **content, "base": backbone.name, "dtype": dtype, "fingerprint": known, **ends})
