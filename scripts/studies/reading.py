"""How well a prompt can be put into words: its decoding, a text that is searched, and a person's, beside it.

Knows nothing of how a prompt is trained, or of tables.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from ptuning.data import Row
from ptuning.inspection.hardening import Search, harden, price
from ptuning.inspection.measures.ladder import SOFT
from ptuning.inspection.verdict import judge
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.inspection.vocabulary.neighbours import top
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt

SEARCH = Search(max_steps=30, batch_size=16)
MOST_ROWS = 200  # test rows that each text is read with


def read(
    prompt: SoftPrompt,
    backbone: Backbone,
    train: Sequence[Row],
    test: Sequence[Row],
    human: str | None,
    is_searched: bool,
) -> dict[str, Any]:
    """What texts in a prompt's place score.

    Args:
        prompt: The prompt, with its task.
        backbone: The base model.
        train: Rows to search a text with.
        test: Rows to measure on.
        human: A person's text.
        is_searched: Whether a text is searched.

    Returns:
        The soft prompt's accuracy and loss, the verdict on it, and a record for each thing in its place.
    """
    rows = test[:MOST_ROWS]
    if is_searched:
        found = harden(prompt, backbone, train, rows, human, SEARCH)
        table, scores = found.table, found.scores
    else:
        table, scores = price(prompt, backbone, rows, human)
    verdict = judge(scores, _share_at_init(prompt, Vocabulary.of(backbone)))
    soft = next(record for record in table if record["prompt"] == SOFT)
    return {
        "test": {key: round(soft[key], 5) for key in ("accuracy", "loss")},
        "verdict": verdict.word,
        "texts": [dict(record) for record in table],
    }


def _share_at_init(prompt: SoftPrompt, vocabulary: Vocabulary) -> float:
    """The share of virtual tokens whose nearest token is the one that they began at."""
    nearest = top(prompt.embeddings_PH.to(vocabulary.device), vocabulary, 1)[1][:, 0].tolist()
    began = prompt.init.get("token_ids") or [None] * len(nearest)
    pairs = zip(nearest, began, strict=True)
    return statistics.mean(own is not None and vocabulary.is_same(i, own) for i, own in pairs)
