"""How rows are read: batch sizes, the forward path, and progress bars.

Knows nothing of prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ptuning.data import FEWEST_BATCHES, Example, by_length
from ptuning.errors import PromptError


@dataclass(frozen=True)
class ReadOptions:
    """Passed whole to everything that reads many rows."""

    batch_size: int = 32
    """The most rows in a batch."""
    max_batch_tokens: int | None = None
    """The most tokens in a batch, including padding and virtual tokens; None: no limit."""
    path: str = "auto"
    """The forward path, as in `label_logits`."""
    progress: bool = False
    """Whether progress bars are shown on stderr."""
    keeps_bars: bool = True
    """Whether a bar stays when it is full; False: the next one takes its line."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PromptError(f"{name}={value}", "an integer above 0", "Use 1 or more")

    def batches(
        self,
        examples: Sequence[Example],
        num_new_tokens: int = 0,
        overhead_tokens: int = FEWEST_BATCHES,
        prefix_lengths: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Row indices in batches that these options allow; arguments as in `data.by_length`."""
        return by_length(
            examples, self.batch_size, self.max_batch_tokens, num_new_tokens, overhead_tokens, prefix_lengths
        )
