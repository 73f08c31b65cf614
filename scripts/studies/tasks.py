"""The development tasks of studies: their words, their labels, and their rows, all of them or a few.

Rows are fetched on demand. Choices are made on the validation rows. Knows nothing of models or of training.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from demo_assets import fetch
from downloads import beside
from text_rows import write_rows

from ptuning.data import Row
from ptuning.errors import PTuningError
from studies.sources import LICENSES, SOURCES
from studies.splits import SPLITS, dealt, distinct, in_turn


@dataclass(frozen=True)
class StudyTask:
    """A task whose rows are `text` and `label`."""

    name: str
    """Its folder among the assets."""
    before: str
    """The words before a text."""
    after: str
    """The words between a text and its answer."""
    verbalizer: Mapping[str, str] | None = None
    """Label -> the text that stands for it; None: the label is the answer, and is written."""
    folder: Path = field(default=Path())
    """Where its rows lie, once they are prepared."""
    max_length: int = 256
    """The most tokens of a row, virtual tokens and answer included."""
    instruction: str | None = None
    """What a person would write before the text."""

    columns = ("text", "label")

    @property
    def splits(self) -> dict[str, Path]:
        """Split -> its file."""
        return {split: self.folder / f"{split}.csv" for split in SPLITS}

    @property
    def answer(self) -> str:
        """The answer, as `data.answer` takes it."""
        return "{label}" if self.verbalizer else " {label}"

    def template(self, slots: str) -> str:
        """The task's words with virtual tokens before the text, between text and question, and before the answer.

        Args:
            slots: How many stand at each place, such as "17/0/3"; words may stand around a number, as in
                "Please20. /0/0".
        """
        places = slots.split("/")
        first, second, third = ("" if each == "0" else _NUMBER.sub(r"{prompt:\g<0>}", each) for each in places)
        return f"{first}{self.before}{{text}}{second}{self.after}{third}"


def _verbalizer(labels: str) -> dict[str, str]:
    """Reads "label word, label word": label -> the word behind a space."""
    pairs = (pair.split(" ") for pair in labels.split(", "))
    return {label: f" {word}" for label, word in pairs}


_NUMBER = re.compile(r"\d+")
_SENTIMENT = _verbalizer("negative negative, positive positive")
_ALL = (
    StudyTask(
        *("trec", "Question: ", "\nType:"),
        _verbalizer("ABBR abbreviation, DESC description, ENTY entity, HUM person, LOC location, NUM number"),
        instruction="What does the question ask for: abbreviation, description, entity, person, location or number?\n",
    ),
    StudyTask(
        *("movie_reviews", "Review: ", "\nSentiment:", _SENTIMENT),
        instruction="Is this review of a film positive or negative?\n",
    ),
    StudyTask(*("tweets", "Tweet: ", "\nSentiment:", _SENTIMENT), instruction="Is this tweet positive or negative?\n"),
    StudyTask("sms_spam", "Message: ", "\nKind:", _verbalizer("ham normal, spam spam")),
    StudyTask(
        *("r8", "News: ", "\nTopic:"),
        _verbalizer(
            "earn earnings, acq acquisition, crude oil, trade trade, money-fx currency, interest interest, "
            "ship shipping, grain grain"
        ),
    ),
    StudyTask(
        *("newsgroups", "Post: ", "\nGroup:"),
        _verbalizer(
            "alt.atheism atheism, comp.graphics graphics, comp.os.ms-windows.misc Windows, "
            "comp.sys.ibm.pc.hardware PC, comp.sys.mac.hardware Mac, comp.windows.x X, misc.forsale sale, "
            "rec.autos cars, rec.motorcycles motorcycles, rec.sport.baseball baseball, rec.sport.hockey hockey, "
            "sci.crypt encryption, sci.electronics electronics, sci.med medicine, sci.space space, "
            "soc.religion.christian Christian, talk.politics.guns guns, talk.politics.mideast Israel, "
            "talk.politics.misc politics, talk.religion.misc religion"
        ),
    ),
    StudyTask(
        *("tickets", "Message: ", "\nAbout:"),
        _verbalizer(
            "comp.sys.mac.hardware computers, rec.autos cars, rec.sport.baseball sports, sci.med health, "
            "misc.forsale sale"
        ),
    ),
    StudyTask("capitals", "The capital of ", " is"),
    StudyTask("past_tense", "The past tense of ", " is"),
    StudyTask("plural", "The plural of ", " is"),
)
TASKS = {task.name: task for task in _ALL}
"""Name -> task, its rows not yet prepared."""


def prepare(name: str, assets: Path) -> StudyTask:
    """A task whose rows lie among the assets; what is missing is fetched.

    Args:
        name: One of `TASKS`.
        assets: The folder; the movie reviews and tweets are the demo's, the others lie in its folder `study`.

    Raises:
        PTuningError: There is no such task, or as `demo_assets.fetch`.
    """
    if name not in TASKS:
        raise PTuningError(f"the task {name}", f"one of {', '.join(TASKS)}", "Name one of these")
    folder = assets / "study" / name if name in SOURCES else assets / name
    if not folder.exists():
        if name in SOURCES:
            _make(TASKS[name], folder, assets / "downloads")
        else:
            fetch(assets)
    return replace(TASKS[name], folder=folder)


def few(rows: Sequence[Row], number: int | str | None, seed: int) -> list[Row]:
    """Some of the rows, drawn at random.

    Args:
        rows: The rows, with a column `label`.
        number: How many in all, in the shares of the labels; how many of each label, as in "16 a class", or all of a
            label that has fewer; None: all rows, as they are.
        seed: Seed of the draw.

    Raises:
        PTuningError: For any other number.
    """
    if number is None:
        return list(rows)
    drawn = in_turn(rows, lambda row: row.values["label"], seed)
    if isinstance(number, int):
        return drawn[:number]
    each, unit, _ = number.partition(" a class")
    if not (unit and each.isdecimal()):
        raise PTuningError(f"{number!r} rows", "a number, such as 140, or one a class: '16 a class'", "Correct it")
    counts: Counter[str] = Counter()
    kept = []
    for row in drawn:
        counts[row.values["label"]] += 1
        if counts[row.values["label"]] <= int(each):
            kept.append(row)
    return kept


def _make(task: StudyTask, folder: Path, downloads: Path) -> None:
    """Fetches a task's rows, and writes its splits and the licences."""
    for parent in (downloads, folder.parent):
        parent.mkdir(parents=True, exist_ok=True)
    (folder.parent / "LICENSES.txt").write_text(LICENSES, encoding="utf-8")
    splits = _splits_of(task, downloads)
    with beside(folder) as new:
        new.mkdir()
        for split, rows in splits.items():
            write_rows(new / f"{split}.csv", rows)
        new.rename(folder)


def _splits_of(task: StudyTask, downloads: Path) -> dict[str, list[tuple[str, str]]]:
    """The rows of a task's labels: an official test is kept, and what it repeats is left out of the other splits."""
    source = SOURCES[task.name]
    test = distinct(_labelled(task, source.read_test(downloads)))
    return dealt(distinct(_labelled(task, source.read(downloads)), taken=test), test)


def _labelled(task: StudyTask, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The rows that have one of the task's labels."""
    return [row for row in rows if task.verbalizer is None or row[1] in task.verbalizer]
