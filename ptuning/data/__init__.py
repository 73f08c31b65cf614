"""Rows become token ids and batches.

A row goes through it once: `readers` (a file's row) or `memory` (a program's), `splitting` (whether it validates),
`template` and `task` (its words), `coder` (its token ids, an `Example`), `sampling` (which rows stand together),
`batches` (tensors). Text that follows other text, such as a label, has the tokens of running text, whatever a
`tokenizer` adds to texts by themselves.
Knows nothing of models, prompts or training.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.data.batches import IGNORED as IGNORED
    from ptuning.data.batches import ApartBatch as ApartBatch
    from ptuning.data.batches import Batch as Batch
    from ptuning.data.batches import added as added
    from ptuning.data.batches import collate as collate
    from ptuning.data.batches import collate_pairs as collate_pairs
    from ptuning.data.batches import moved as moved
    from ptuning.data.batches import padded as padded
    from ptuning.data.batches import positions as positions
    from ptuning.data.checks import doubts as doubts
    from ptuning.data.checks import is_code as is_code
    from ptuning.data.checks import require_sound as require_sound
    from ptuning.data.coder import Coder as Coder
    from ptuning.data.examples import Example as Example
    from ptuning.data.examples import num_cut as num_cut
    from ptuning.data.examples import prefix_ids as prefix_ids
    from ptuning.data.examples import warn_of_cut as warn_of_cut
    from ptuning.data.examples import with_answer as with_answer
    from ptuning.data.memory import Rows as Rows
    from ptuning.data.memory import records as records
    from ptuning.data.readers import Row as Row
    from ptuning.data.readers import as_row as as_row
    from ptuning.data.readers import delimiter_of as delimiter_of
    from ptuning.data.readers import has_byte_order_mark as has_byte_order_mark
    from ptuning.data.readers import read_rows as read_rows
    from ptuning.data.readers import require_source as require_source
    from ptuning.data.readers import rows_of as rows_of
    from ptuning.data.sampling import FEWEST_BATCHES as FEWEST_BATCHES
    from ptuning.data.sampling import BatchStream as BatchStream
    from ptuning.data.sampling import by_length as by_length
    from ptuning.data.sampling import require_small as require_small
    from ptuning.data.splitting import split_off as split_off
    from ptuning.data.task import Task as Task
    from ptuning.data.task import Verbalizer as Verbalizer
    from ptuning.data.template import Template as Template
    from ptuning.data.template import can_be_field as can_be_field
    from ptuning.data.tokenizer import RunningText as RunningText
    from ptuning.data.tokenizer import Stretch as Stretch
    from ptuning.data.tokenizer import frame_ids as frame_ids
    from ptuning.data.tokenizer import text_ids as text_ids
    from ptuning.data.wording import template_for as template_for
    from ptuning.data.wording import verbalizer_for as verbalizer_for
    from ptuning.data.wording import with_slot as with_slot

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "batches": (
            "ApartBatch",
            "Batch",
            "IGNORED",
            "added",
            "collate",
            "collate_pairs",
            "moved",
            "padded",
            "positions",
        ),
        "checks": ("doubts", "is_code", "require_sound"),
        "coder": ("Coder",),
        "examples": ("Example", "num_cut", "prefix_ids", "warn_of_cut", "with_answer"),
        "memory": ("Rows", "records"),
        "readers": (
            "Row",
            "as_row",
            "delimiter_of",
            "has_byte_order_mark",
            "read_rows",
            "require_source",
            "rows_of",
        ),
        "sampling": ("BatchStream", "FEWEST_BATCHES", "by_length", "require_small"),
        "splitting": ("split_off",),
        "task": ("Task", "Verbalizer"),
        "template": ("Template", "can_be_field"),
        "tokenizer": ("RunningText", "Stretch", "frame_ids", "text_ids"),
        "wording": ("template_for", "verbalizer_for", "with_slot"),
    },
)
