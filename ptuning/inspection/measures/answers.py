"""What the prompt answers, row by row: rows that it fixed and broke, and which labels it takes for which.

Knows nothing of models: the ladder has read the rows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ptuning.data import Row, Task, Template
from ptuning.evaluation import Scores, Table
from ptuning.inspection.measures.ladder import NAME as LADDER
from ptuning.inspection.measures.ladder import NONE, SOFT, Ladder
from ptuning.inspection.measures.protocol import Grid, Measured, Subject

NAME, CONFUSION = "answers", "confusion"
MOST_ROWS = 5  # that are shown as fixed, and as broken
_MOST_LABELS = 10  # that a matrix shows
_MOST_LETTERS = 300  # of a row's text
COLUMNS = {
    "change": "fixed: right with the prompt alone; broken: right without it alone",
    "row": "the row's name",
    "text": "what the row shows, its beginning",
    "answer": "the right answer",
    "without": "the answer of the same words without the prompt; None where answers are written",
    "with": "the answer with the prompt; None where answers are written",
}
CONFUSION_COLUMNS = {
    "label": "the right label",
    "predicted": "the label that the prompt gives",
    "rows": "how many rows",
}


def measure(subject: Subject, earlier: Mapping[str, Measured]) -> Measured | None:
    """Compares the answers with those without a prompt; None without rows, or where nothing is left without it."""
    found = earlier.get(LADDER)
    if not isinstance(found, Ladder) or NONE not in found.scores.names:
        return None
    assert subject.rows is not None
    assert subject.prompt.task is not None
    return changes(subject.prompt.task, subject.rows, found.scores.scores_of(NONE), found.scores.scores_of(SOFT))


def changes(task: Task, rows: Sequence[Row], without: Scores, with_prompt: Scores) -> Measured:
    """The rows that one side alone answers right, the first few of each kind.

    Args:
        task: What the rows are asked.
        rows: N rows.
        without: Their scores without the prompt.
        with_prompt: Their scores with it.
    """
    gained_N = (with_prompt.correct_NK[:, 0] - without.correct_NK[:, 0]).tolist()
    predicted = [_predictions(task, each) for each in (without, with_prompt)]
    names = Template.parse(task.template).field_names
    kinds = {"fixed": [i for i, gain in enumerate(gained_N) if gain > 0]}
    kinds["broken"] = [i for i, gain in enumerate(gained_N) if gain < 0]
    records = [
        {
            "change": kind,
            "row": rows[i].where,
            "text": _beginning(" | ".join(rows[i].values[name] for name in names)),
            "answer": task.answer_text(rows[i].values),
            "without": predicted[0][i],
            "with": predicted[1][i],
        }
        for kind, own in kinds.items()
        for i in own[:MOST_ROWS]
    ]
    shown = ["change", "text", "answer", *(["without", "with"] if task.is_classification else [])]
    grid = Grid("rows that change", shown, [[record[name] for name in shown] for record in records])
    counts = f"The prompt answers {len(kinds['fixed'])} rows right that it does not without it, and "
    how = f"{counts}{len(kinds['broken'])} the other way round. The first {MOST_ROWS} of each, in the rows' order."
    return Measured(name=NAME, title="Rows that it fixed and broke", how=how, table=Table(COLUMNS, records), chart=grid)


def measure_confusion(subject: Subject, earlier: Mapping[str, Measured]) -> Measured | None:
    """Which labels the prompt takes for which; None without rows or without labels."""
    found = earlier.get(LADDER)
    if not isinstance(found, Ladder) or not found.scores.has_labels:
        return None
    assert subject.rows is not None
    assert subject.prompt.task is not None
    return confusion(subject.prompt.task, subject.rows, found.scores.scores_of(SOFT))


def confusion(task: Task, rows: Sequence[Row], scores: Scores) -> Measured:
    """The confusion matrix; with many labels the commonest mistakes.

    Args:
        task: What the rows are asked, with labels.
        rows: N rows.
        scores: Their scores with the prompt.
    """
    labels = tuple(task.verbalizer or ())
    counts = dict.fromkeys(((own, other) for own in labels for other in labels), 0)
    for row, predicted in zip(rows, _predictions(task, scores), strict=True):
        assert predicted is not None
        counts[row.values[task.label_column], predicted] += 1
    records = [{"label": own, "predicted": other, "rows": number} for (own, other), number in counts.items()]
    is_matrix = len(labels) <= _MOST_LABELS
    if is_matrix:
        heads = ["label", *(str(i) for i in range(1, len(labels) + 1))]
        lines = [[f"{i} {own}", *(counts[own, other] for other in labels)] for i, own in enumerate(labels, 1)]
        how = "A line for each right label, a column for each label that the prompt gives, in the same order."
    else:
        heads = list(CONFUSION_COLUMNS)
        wrong = Counter({pair: number for pair, number in counts.items() if number and pair[0] != pair[1]})
        lines = [[*pair, number] for pair, number in wrong.most_common(MOST_ROWS)]
        how = "The commonest mistakes."
    table, chart = Table(CONFUSION_COLUMNS, records), Grid("confusion matrix", heads, lines, is_matrix=is_matrix)
    return Measured(name=CONFUSION, title="Which labels it takes for which", how=how, table=table, chart=chart)


def _predictions(task: Task, scores: Scores) -> list[Any]:
    """The label that each row gets; None where answers are written."""
    if scores.labels_NKC is None:
        return [None] * len(scores.correct_NK)
    labels = tuple(task.verbalizer or ())
    return [labels[i] for i in scores.labels_NKC[:, 0].argmax(dim=1).tolist()]


def _beginning(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]} \u2026"
