"""Says how many rows were read when a device ran out of memory.

Knows nothing of what the rows are read for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ptuning.data import Example
from ptuning.errors import OutOfMemoryError
from ptuning.model import is_out_of_memory


@contextmanager
def memory_explained(examples: Sequence[Example], num_new_tokens: int = 0, num_beams: int = 1) -> Iterator[None]:
    """Raises `OutOfMemoryError` in place of torch's errors, for rows that are read in one batch.

    Args:
        examples: The rows.
        num_new_tokens: Tokens that each row may grow by.
        num_beams: How often each row is read, for generation with beams.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        longest = max(map(len, examples), default=0) + num_new_tokens
        raise OutOfMemoryError(len(examples), longest * len(examples) * num_beams) from error
