"""Proposes a commented config for rows that nobody has described: which column is asked for, and in which words.

Knows nothing of files beyond their names, or of models.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptuning.data import Row, can_be_field, template_for, verbalizer_for
from ptuning.errors import DataError

_LABEL_NAMES = ("label", "labels", "class", "category", "topic", "sentiment", "intent", "target", "y")
_ANSWER_NAMES = ("answer", "output", "response", "completion", "summary", "target", "reply")
_MOST_LABELS = 77
_FEWEST_ROWS_A_LABEL = 3  # a column with fewer rows a value is no label
_NUM_VIRTUAL_TOKENS = 20
_DATE = re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}")


@dataclass(frozen=True)
class Proposal:
    """What the rows seem to be."""

    asked: str
    """The column with the answers."""
    shown: tuple[str, ...]
    """The columns that are shown."""
    labels: Counter[str] | None
    """Label -> rows; None where answers are written."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Proposal":
        """Looks at rows; raises `DataError` where there is nothing to show or to ask for."""
        names = [name for name in rows[0].values if can_be_field(name)]
        if len(names) < 2:
            unusable = [name for name in rows[0].values if not can_be_field(name)]
            others = f" (and {', '.join(map(repr, unusable))}, which no template can name)" if unusable else ""
            raise DataError(
                f"rows with the columns {', '.join(names) or 'none'}{others}",
                "a text and an answer",
                "Add a column of answers, or rename the columns",
            )
        counts = {name: _values(rows, name) for name in names}
        labels = [name for name in names if _are_labels(counts[name], len(rows))]
        asked = _asked(names, labels, counts)
        shown = tuple(name for name in names if name != asked and _is_shown(counts[name], name in labels))
        return cls(
            asked,
            shown or tuple(name for name in names if name != asked),
            counts[asked] if asked in labels else None,
        )

    def config(self, data: Path, model: str, num_rows: int, target: Path) -> str:
        """The config as commented YAML.

        Args:
            data: The rows' file.
            model: The base model.
            num_rows: How many rows there are.
            target: The config's own file, for the command in its first line.
        """
        asked = self.asked.replace("_", " ").strip().capitalize()
        template = template_for(self.shown, _NUM_VIRTUAL_TOKENS, asked)
        answer = f"{{{self.asked}}}" if self.labels else f" {{{self.asked}}}"
        told = f"{num_rows:,} rows; shown: {', '.join(self.shown)}; asked for: {self.asked}"
        lines = [
            _comment(f"ptuning train --config {target}"),
            _comment(f"Proposed by ptuning init for {data.name} ({told}). Every line may be changed."),
            "model:",
            f"  name_or_path: {_quoted(model)}  # a directory, or a name on the hub",
            "data:",
            f"  train: {_quoted(str(data))}",
            "  # validation: FILE  # chooses the best prompt; without it a fifth of the training rows is set aside",
            "  # test: FILE  # reported at the end, with the prompt and without it",
            "  # {prompt:20} are the virtual tokens; they may stand anywhere, also in several places",
            f"  template: {_quoted(template)}",
            f"  answer: {_quoted(answer)}",
            *self._verbalizer(),
            "train:",
            f"  output_dir: {_quoted(f'runs/{stem(data)}')}",
        ]
        return "\n".join(lines) + "\n"

    def _verbalizer(self) -> list[str]:
        if self.labels is None:
            return ["  # no verbalizer: the answer is written, word by word"]
        texts = verbalizer_for(sorted(self.labels))
        told = "  # label -> the words that stand for it; words that mean what the label means learn best"
        lines = [
            f"    {_quoted(label)}: {_quoted(text)}  # {self.labels[label]:,} rows" for label, text in texts.items()
        ]
        return [told, "  verbalizer:", *lines]


def stem(data: Path) -> str:
    """A data file's name without its endings."""
    return Path(data.name.removesuffix(".gz")).stem


def _values(rows: Sequence[Row], name: str) -> Counter[str]:
    """A column's values, without empty ones."""
    values = (row.values.get(name) for row in rows)
    return Counter(str(value) for value in values if value is not None and str(value).strip())


def _asked(names: Sequence[str], labels: Sequence[str], counts: Mapping[str, Counter[str]]) -> str:
    """The column to ask for: by its name, else the one with the fewest labels, else the last."""
    named = [name for name in labels if name.lower() in _LABEL_NAMES]
    named += [name for name in names if name.lower() in _ANSWER_NAMES]
    if named:
        return named[0]
    return min(labels, key=lambda name: len(counts[name])) if labels else names[-1]


def _are_labels(counts: Counter[str], num_rows: int) -> bool:
    """Whether a column's values are few and come again."""
    return 2 <= len(counts) <= _MOST_LABELS and num_rows >= _FEWEST_ROWS_A_LABEL * len(counts)


def _is_shown(counts: Counter[str], are_labels: bool) -> bool:
    """Whether a column says something: texts, and values that come again unless they are dates."""
    return _is_text(counts) or (are_labels and not all(map(_DATE.match, counts)))


def _is_text(counts: Counter[str]) -> bool:
    """Whether a column's values are words rather than numbers, dates or ids."""
    worded = sum(_is_worded(value.strip()) for value in counts)
    return 2 * worded >= len(counts) > 0


def _is_worded(value: str) -> bool:
    """Whether a value has letters, and is more than a mark such as A12."""
    return any(map(str.isalpha, value)) and (" " in value or not any(map(str.isdecimal, value)))


def _comment(text: str) -> str:
    """A comment of one line, whatever names stand in it."""
    return "# " + "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _quoted(text: str) -> str:
    """Text in double quotes, which YAML reads as JSON does."""
    return json.dumps(text, ensure_ascii=False)
