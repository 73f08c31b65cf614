"""Looks at a task and its rows before an hour is lost on them: what cannot be meant, and what is probably not.

Knows nothing of tokens, models or files.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.data.template import Template
from ptuning.errors import DataError

_MOST_TOLD = 3  # examples of one kind in a message
_SIGN = re.compile(r"[\d_/\\|#@.:]")


def require_sound(task: Task, rows: Mapping[str, Sequence[Row]]) -> None:
    """Raises `DataError` for what cannot be learnt from.

    Args:
        task: The task.
        rows: Split -> rows, with all columns.
    """
    names = Template.parse(task.template).field_names
    if not names:
        raise DataError(
            f"data.template {task.template!r} without a column", "one that shows each row, as {text} does", "Add one"
        )
    if not task.is_classification:
        return
    shown = task.label_column
    if shown in names:
        raise DataError(
            f"data.template {task.template!r} with the answer's column {{{shown}}} in it",
            "a template that does not tell the answer",
            "Take it out",
        )
    for split, own in rows.items():
        _require_known_labels(task, split, own)
    found = {row.values[shown] for row in rows.get("train", ())}
    if len(found) == 1:
        raise DataError(
            f"{len(rows['train']):,} training rows, all of label {found.pop()!r}",
            "rows of two labels or more",
            "Add rows of another label",
        )


def _require_known_labels(task: Task, split: str, rows: Sequence[Row]) -> None:
    """Raises `DataError` for labels that the verbalizer lacks, all of them together."""
    known = tuple(task.verbalizer or ())
    unknown = [row for row in rows if row.values[task.label_column] not in known]
    if not unknown:
        return
    counts = Counter(row.values[task.label_column] for row in unknown)
    first = next(iter(counts))
    told = ", ".join(f"{label!r} ({count:,})" for label, count in counts.most_common(_MOST_TOLD))
    more = ", ..." if len(counts) > _MOST_TOLD else ""
    others = f"; {len(unknown):,} {split} rows have labels that are not there: {told}{more}" if len(unknown) > 1 else ""
    meant = {_plain(label): label for label in known}
    close = difflib.get_close_matches(_plain(first), meant, n=1)
    hint = f" (probably {meant[close[0]]!r})" if close else ""
    raise DataError(
        f"{unknown[0].where}: label {first!r}",
        f"one of {', '.join(known)}{hint}{others}",
        "Correct the rows, or add the labels to data.verbalizer",
    )


def doubts(task: Task, rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """What is probably not meant, one sentence each with what to do.

    Args:
        task: The task.
        rows: Split -> rows, with all columns.
    """
    return [*_doubts_of_words(task), *_doubts_of_labels(task, rows), *_doubts_of_texts(task, rows)]


def is_code(text: str) -> bool:
    """Whether a label's text is no word: a number, an abbreviation in capitals, or a name with signs in it."""
    word = text.strip()
    return bool(_SIGN.search(word)) or (len(word) > 1 and word.isupper())


def _doubts_of_words(task: Task) -> Iterator[str]:
    if "\\n" in task.template:
        yield (
            "data.template holds \\n as two characters, a backslash and an n: YAML reads \\n as a new line between "
            "double quotes only"
        )
    codes = [text.strip() for text in (task.verbalizer or {}).values() if is_code(text)]
    if codes:
        yield (
            f"label words that look like codes ({_listed(codes)}): write words that say what each label means, as in "
            'data.verbalizer: {HUM: " person"}; prompts learn faster and better from them'
        )
    ending = Template.parse(task.template).ending or ""
    texts = list((task.verbalizer or {"": task.answer}).values())
    spaced = [text for text in texts if text[:1] == " "]
    if ending[-1:] == " " and spaced:
        yield (
            f"data.template ends with a space and {spaced[0]!r} begins with one: take the space from the template, "
            "since models know words with the space before them"
        )


def _doubts_of_labels(task: Task, rows: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    if not task.is_classification:
        return
    alike: dict[str, list[str]] = {}
    for label in task.verbalizer or ():
        alike.setdefault(_plain(label), []).append(label)
    same = [" and ".join(map(repr, labels)) for labels in alike.values() if len(labels) > 1]
    if same:
        yield f"labels differ in case or spaces alone ({'; '.join(same)}): make them one if they mean the same"
    counts = Counter(row.values[task.label_column] for row in rows["train"])
    unseen = [label for label in task.verbalizer or () if not counts[label]]
    if unseen:
        yield f"no training row has the label {_listed(map(repr, unseen))}: add some, or take it from data.verbalizer"


def _doubts_of_texts(task: Task, rows: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    names = Template.parse(task.template).field_names
    asked = {split: [tuple(row.values[name] for name in names) for row in own] for split, own in rows.items()}
    seen = set(asked["train"])
    for split, texts in asked.items():
        empty = [row.where for row, text in zip(rows[split], texts, strict=True) if not "".join(text).strip()]
        if empty:
            yield f"{len(empty):,} {split} rows have no text ({_listed(empty)}): remove them, or correct the columns"
        if split != "train":
            known = [row.where for row, text in zip(rows[split], texts, strict=True) if text in seen]
            if known:
                yield (
                    f"{len(known):,} of {len(texts):,} {split} rows stand in the training rows too ({_listed(known)}): "
                    "remove them from one, since they make the result look better than it is"
                )


def _plain(label: str) -> str:
    return " ".join(label.lower().split())


def _listed(each: Iterable[str]) -> str:
    told = list(each)
    return ", ".join(told[:_MOST_TOLD]) + (", ..." if len(told) > _MOST_TOLD else "")
