"""Sets validation rows aside from training rows, the same ones each time.

Knows nothing of files, models or tensors.
"""

import random
from collections.abc import Sequence

from ptuning.data.readers import Row

FEWEST_ROWS = 10  # of fewer rows, none are set aside
MOST_SET_ASIDE = 1000


def split_off(
    rows: Sequence[Row], share: float, seed: int, label_column: str | None = None, columns: Sequence[str] = ()
) -> tuple[list[Row], list[Row]]:
    """Divides rows at random into those to train on and those to validate on, each in their own order.

    Args:
        rows: All rows.
        share: The share to set aside, at least 0 and below 1; at most `MOST_SET_ASIDE` rows are.
        seed: Seed of the choice; the same rows, share and seed give the same parts.
        label_column: The column whose values are set aside in the same proportions; None: no such column. A value's
            last row is never set aside.
        columns: The columns that a row shows. Rows that show the same as one that is trained on are not set aside.

    Returns:
        The rows to train on, and those set aside: none of fewer than `FEWEST_ROWS` rows.
    """
    if len(rows) < FEWEST_ROWS or share == 0:
        return list(rows), []
    share = min(share, MOST_SET_ASIDE / len(rows))
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.values[label_column] if label_column else "", []).append(i)
    chance, chosen = random.Random(seed), set[int]()
    for group, size in zip(groups.values(), _sizes([len(group) for group in groups.values()], share), strict=True):
        chosen.update(chance.sample(group, size))
    if columns:
        shown = [tuple(row.values[name] for name in columns) for row in rows]
        trained_on = {own for i, own in enumerate(shown) if i not in chosen}
        chosen = {i for i in chosen if shown[i] not in trained_on}
    return [row for i, row in enumerate(rows) if i not in chosen], [rows[i] for i in sorted(chosen)]


def _sizes(totals: Sequence[int], share: float) -> list[int]:
    """How many rows to set aside of each group: its share rounded, by largest remainders, but never the whole group."""
    exact = [total * share for total in totals]
    sizes = [int(each) for each in exact]
    num_left = round(sum(exact)) - sum(sizes)
    for i in sorted(range(len(totals)), key=lambda i: sizes[i] - exact[i])[:num_left]:
        sizes[i] += 1
    return [min(size, total - 1) for size, total in zip(sizes, totals, strict=True)]
