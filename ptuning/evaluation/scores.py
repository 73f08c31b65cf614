"""The scores of rows, as tensors: what metrics and comparisons are computed from.

Knows nothing of models, training or files.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RowScores:
    """The outcome for each of N rows, as tensors on the CPU."""

    log_probs_N: Tensor
    """Log-probability of the row's own answer, in nats."""
    is_correct_N: Tensor
    """With labels: whether the row's label is the most likely. Without: whether greedy generation writes its answer."""
    labels_NC: Tensor | None
    """Log-probability of each label's text, in nats; None without labels."""
