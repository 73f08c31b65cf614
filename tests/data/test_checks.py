"""What is told of a task and its rows before anything is trained."""

from typing import Any

import pytest

from ptuning.data import Row, Task, doubts, is_code, require_sound
from ptuning.errors import DataError

LABELS = {"good": " fine", "bad": " poor"}
SOUND = Task("{prompt:2}Film: {text}\nIt is", verbalizer=LABELS)


def rows(*pairs: tuple[str, str]) -> list[Row]:
    return [Row({"text": text, "label": label}, f"a.csv line {i + 2}") for i, (text, label) in enumerate(pairs)]


GIVEN = {"train": rows(("a", "good"), ("b", "bad")), "test": rows(("c", "good"))}


def test_a_sound_task_raises_no_doubt() -> None:
    require_sound(SOUND, GIVEN)
    assert doubts(SOUND, GIVEN) == []
    writes = Task("{prompt:2}The capital of {text} is", " {label}")
    require_sound(writes, GIVEN)
    assert doubts(writes, GIVEN) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((" positive", False), (" X", False), (" Mac", False), (" not good", False), ("é", False)),
        *((" ABBR", True), (" 1", True), (" sci.med", True), (" money_fx", True), (" HUM", True)),
    ],
)
def test_codes_are_told_from_words(text: str, expected: bool) -> None:
    assert is_code(text) == expected


def test_label_words_that_are_codes_are_told() -> None:
    task = Task("{prompt:2}{text}:", verbalizer={"good": " fine", "bad": " NEG"})
    (told,) = doubts(task, GIVEN)
    assert told.startswith("label words that look like codes (NEG): write words that say what each label means")


@pytest.mark.parametrize(
    ("template", "given", "told"),
    [
        ("{prompt:2}Film", GIVEN, r"data.template '{prompt:2}Film' without a column; expected one that shows each row"),
        ("{prompt:2}{text} {label}", GIVEN, r"with the answer's column {label} in it; .*Take it out"),
        (
            "{prompt:2}{text}",
            {"train": GIVEN["test"]},
            r"1 training rows, all of label 'good'; expected rows of two labels",
        ),
        (
            "{prompt:2}{text}",
            {**GIVEN, "test": rows(("a", "good"), ("b", "Good "), ("c", "Good "), ("d", "awful"))},
            r"a.csv line 3: label 'Good '; expected one of good, bad \(probably 'good'\); 3 test rows have labels "
            r"that are not there: 'Good ' \(2\), 'awful' \(1\)\. Correct the rows",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(template: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        require_sound(Task(template, verbalizer=LABELS), given)


@pytest.mark.parametrize(
    ("task", "given", "told"),
    [
        (Task("{prompt:2}{text}\\nIt is", verbalizer=LABELS), GIVEN, r"data.template holds \n as two characters"),
        (
            Task("{prompt:2}{text} is ", verbalizer=LABELS),
            GIVEN,
            "data.template ends with a space and ' fine' begins with one",
        ),
        (
            Task("{prompt:2}{text} is ", " {label}"),
            GIVEN,
            "data.template ends with a space and ' {label}' begins with one",
        ),
        (
            Task("{prompt:2}{text}", verbalizer={**LABELS, "Good": " great"}),
            {**GIVEN, "train": [*GIVEN["train"], *rows(("d", "Good"))]},
            "labels differ in case or spaces alone ('good' and 'Good')",
        ),
        (Task("{prompt:2}{text}", verbalizer={**LABELS, "odd": " odd"}), GIVEN, "no training row has the label 'odd'"),
        (
            SOUND,
            {**GIVEN, "train": [*GIVEN["train"], *rows((" ", "good"))]},
            "1 train rows have no text (a.csv line 2): remove them",
        ),
        (
            SOUND,
            {**GIVEN, "test": rows(("z", "good"), ("a", "bad"))},
            "1 of 2 test rows stand in the training rows too (a.csv line 3): remove them",
        ),
    ],
)
def test_what_is_probably_not_meant_is_told(task: Task, given: dict[str, Any], told: str) -> None:
    (doubt,) = doubts(task, given)
    assert doubt.startswith(told)
