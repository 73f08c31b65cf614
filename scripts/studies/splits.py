"""Rows without repeats, dealt to splits in which labels keep their shares.

Knows nothing of where rows come from, or of tasks.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import TypeVar

from text_rows import Pair, shuffled, text_key

SPLITS = ("train", "validation", "test")
_SEED = 20261127
_NUM_VALIDATION, _NUM_TEST = 500, 1000
_MOST_HELD_OUT = 0.4  # of all rows; where the numbers above are more, each split gets half of this

T = TypeVar("T")


def distinct(pairs: Iterable[Pair], taken: Iterable[Pair] = ()) -> list[Pair]:
    """The pairs without empty texts and repeats, of which the first is kept, whatever the labels of the others.

    Args:
        pairs: Texts and labels.
        taken: Pairs whose texts count as repeats.
    """
    seen = {text_key(text) for text, _ in taken}
    kept = []
    for text, label in pairs:
        key = text_key(text)
        if text and key not in seen:
            seen.add(key)
            kept.append((text, label))
    return kept


def dealt(pairs: Sequence[Pair], test: Sequence[Pair] = ()) -> dict[str, list[Pair]]:
    """Deals rows to the splits, the same way every time: split -> rows, in an order as `in_turn` gives it.

    Validation has 500 rows and the test 1,000; where these are more than two fifths of all, each has a fifth.

    Args:
        pairs: Texts and labels, without repeats.
        test: The official test, which is kept whole; empty: the test is dealt too.
    """
    rows = in_turn(pairs, _label_of, _SEED)
    num_test, num_validation = 0 if test else _NUM_TEST, _NUM_VALIDATION
    if num_test + num_validation > _MOST_HELD_OUT * len(rows):
        num_validation = int(_MOST_HELD_OUT / 2 * len(rows))
        num_test = 0 if test else num_validation
    num_held_out = num_test + num_validation
    return {
        "train": rows[num_held_out:],
        "validation": rows[num_test:num_held_out],
        "test": in_turn(test, _label_of, _SEED) if test else rows[:num_test],
    }


def in_turn(rows: Iterable[T], label_of: Callable[[T], str], seed: int) -> list[T]:
    """The rows in random order, in every stretch of which the labels have their shares of the whole, to a row each.

    Args:
        rows: The rows.
        label_of: Returns a row's label.
        seed: Seed of the order.
    """
    by_label: dict[str, list[T]] = defaultdict(list)
    for row in shuffled(rows, Random(seed)):
        by_label[label_of(row)].append(row)
    # The i-th of n rows of a label stands at the middle of the i-th of n equal parts of the whole.
    places = [((i + 0.5) / len(same), row) for same in by_label.values() for i, row in enumerate(same)]
    return [row for _, row in sorted(places, key=lambda placed: placed[0])]


def _label_of(pair: Pair) -> str:
    return pair[1]
