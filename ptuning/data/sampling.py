"""Chooses the rows of each batch: at random for training, by length for reading.

Knows nothing of files, models or tensors.
"""

import math
import random
from collections.abc import Sequence

from ptuning.data.examples import Example
from ptuning.errors import DataError

FEWEST_BATCHES = 10**9  # a cost per batch that no padding outweighs
_BATCHES_PER_WINDOW = 50  # within which rows are grouped by length


def require_small(
    examples: Sequence[Example], limit: int | None, num_new_tokens: int = 0, names: Sequence[str] | None = None
) -> None:
    """Raises `DataError` for a row that alone has more tokens than a batch may have.

    Args:
        examples: The rows.
        limit: The most tokens a batch may have; None: no limit.
        num_new_tokens: Tokens that each row may grow by.
        names: The rows' names; None: their numbers.
    """
    longest = max(range(len(examples)), key=lambda i: len(examples[i]), default=None)
    if longest is None or limit is None or len(examples[longest]) + num_new_tokens <= limit:
        return
    length = len(examples[longest]) + num_new_tokens
    raise DataError(
        f"{names[longest] if names else f'row {longest}'} of {length} tokens, virtual and new ones included",
        f"at most {limit}, the tokens that a batch may have",
        "Raise max_batch_tokens, or shorten the row",
    )


class BatchStream:
    """Endless batches of row numbers; `stream[i]` depends only on the seed and i, so that a run can resume at any step.

    Rows are shuffled again every epoch.

    Args:
        lengths: The length of each row, in tokens.
        batch_size: Rows of a batch; the last one of an epoch may have fewer.
        seed: Seed of the order.
        group_by_length: Whether rows of similar length share a batch, within windows of 50 batches: less padding where
            rows are not packed, but batches that are less alike.
        labels: The label of each row, where every label is to be read as often as any other: an epoch then has as many
            rows, those of rare labels several times, and not all of the common ones. None: every row once an epoch.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        group_by_length: bool = False,
        labels: Sequence[int] | None = None,
    ) -> None:
        self._lengths, self._batch_size, self._seed, self._is_grouped = lengths, batch_size, seed, group_by_length
        self._rows_of: dict[int, list[int]] | None = None
        if labels is not None:
            self._rows_of = {
                label: [i for i, own in enumerate(labels) if own == label] for label in sorted(set(labels))
            }
        self.num_batches_per_epoch = -(-len(lengths) // batch_size)
        self._epoch, self._batches = -1, list[list[int]]()

    def __getitem__(self, index: int) -> list[int]:
        epoch, place = divmod(index, self.num_batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[place]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        chance = random.Random(f"{self._seed}-{epoch}")
        order = list(range(len(self._lengths))) if self._rows_of is None else self._balanced(chance)
        chance.shuffle(order)
        if self._is_grouped:
            order = self._grouped(order)
        batches = [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        if self._is_grouped:
            chance.shuffle(batches)
        return batches

    def _balanced(self, chance: random.Random) -> list[int]:
        """As many rows as there are, of each label equally many up to one, each as often as any of its label."""
        assert self._rows_of is not None
        of_labels = []
        for rows in self._rows_of.values():
            num_times, num_more = divmod(-(-len(self._lengths) // len(self._rows_of)), len(rows))
            of_labels.append([*rows * num_times, *chance.sample(rows, num_more)])
        return [row for turn in zip(*of_labels, strict=True) for row in turn][: len(self._lengths)]

    def _grouped(self, order: Sequence[int]) -> list[int]:
        """The rows by length, within windows of the shuffled rows."""
        window = self._batch_size * _BATCHES_PER_WINDOW
        starts = range(0, len(order), window)
        return [row for start in starts for row in sorted(order[start : start + window], key=self._lengths.__getitem__)]


def by_length(
    examples: Sequence[Example],
    batch_size: int,
    max_batch_tokens: int | None = None,
    num_new_tokens: int = 0,
    overhead_tokens: int = FEWEST_BATCHES,
    prefix_lengths: Sequence[int] | None = None,
) -> list[list[int]]:
    """Row numbers in batches of similar length, the longest first: the cheapest split of the sorted rows.

    Args:
        examples: The rows.
        batch_size: The most rows a batch may have.
        max_batch_tokens: The most tokens it may have, padding included; None: no limit.
        num_new_tokens: Tokens that each row may grow by.
        overhead_tokens: A batch's cost besides its tokens, in tokens; the default makes as few batches as possible.
        prefix_lengths: The number of leading tokens of each row that have been run already.

    Raises:
        DataError: For a row that has too many tokens by itself.
    """
    require_small(examples, max_batch_tokens, num_new_tokens)
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i]))
    if 0 < len(order) <= batch_size and max_batch_tokens is None and overhead_tokens == FEWEST_BATCHES:
        return [order]
    shapes = [(prefix_lengths[i] if prefix_lengths else 0, len(examples[i]) + num_new_tokens) for i in order]
    limit = math.inf if max_batch_tokens is None else max_batch_tokens
    costs, ends = [0] * (len(order) + 1), [0] * len(order)  # from each place on, and its batch's end
    for start in reversed(range(len(order))):
        leading = rest = 0  # the longest in the batch: tokens that have been run are padded apart from the rest
        choices: list[tuple[int, int]] = []
        for num_rows, (own_leading, length) in enumerate(shapes[start : start + batch_size], 1):
            leading, rest = max(leading, own_leading), max(rest, length - own_leading)
            if choices and (leading + rest) * num_rows > limit:
                break
            choices.append((costs[start + num_rows] + rest * num_rows + overhead_tokens, start + num_rows))
        costs[start], ends[start] = min(choices)
    batches, start = [], 0
    while start < len(order):
        batches.append(order[start : ends[start]])
        start = ends[start]
    return batches
