"""Prompting with a person's documents: for each row the nearest passages stand in front of its text.

Knows nothing of how files become passages, and nothing of training.
"""

from collections.abc import Sequence
from itertools import product
from typing import ClassVar, Self

from ptuning.comparison.budget import tries_within
from ptuning.comparison.indexes import Index, StateIndex, WordIndex
from ptuning.comparison.passages import COLUMN
from ptuning.comparison.prompting import READS_TEXT, demonstration, num_tokens_of, numbers_that_fit
from ptuning.comparison.protocol import Facts, Job, SkippedError, Way, require_package
from ptuning.comparison.retrieval import AT_ONCE, Lookup, Retrieved, saved_lookup, saved_rows
from ptuning.comparison.storage import Saved
from ptuning.data import Row, Task
from ptuning.model import CausalBackbone


class Documented(Retrieved):
    """Words behind the passages that are nearest to each row."""

    kind = "documents"

    @classmethod
    def load(cls, saved: Saved) -> Self:
        """Brings it back."""
        rows = saved_rows(saved, [COLUMN])
        passages = [row.values[COLUMN] for row in rows]
        lookup = saved_lookup(saved, [shown(each) for each in passages], passages, Task(f"{{{COLUMN}}}"), rows)
        return cls.of(saved.base, saved.task, lookup, rows)


class Documents(Way):
    """The nearest passages in front of each row; validation rows choose how many, and by what they are near."""

    name, title = "documents", "for each row the nearest passages of your documents, in the text"
    reads_rows, depends_on_chance = False, False
    facts: ClassVar[Facts] = Facts(learns=False, rows_count_at_once=AT_ONCE, **READS_TEXT)

    def require(self, job: Job) -> None:
        """As in `Way`."""
        if not job.passages:
            raise SkippedError("no compare.documents", "a folder of texts", "Name one in the config")
        require_package("bm25s", "bm25s")

    def fit(self, job: Job) -> Retrieved:
        """As in `Way`."""
        texts, tried = [shown(passage) for passage in job.passages], list[tuple[float, Retrieved]]()
        rows = [Row({COLUMN: passage}, f"passage {i}") for i, passage in enumerate(job.passages)]
        for index, number in tries_within(job, product(_indexes(job), _numbers(job, texts))):
            chosen = {"passages": str(number), "by": index.name}
            found = Documented.of(job.backbone, job.words, Lookup(index, texts, number), rows, chosen)
            tried.append((job.score(found), found))
        return max(tried, key=lambda each: each[0])[1].with_costs(job)


def shown(passage: str) -> str:
    """A passage as it stands in front of a row."""
    return f"{passage}\n\n"


def _numbers(job: Job, texts: Sequence[str]) -> list[int]:
    """How many passages may stand in front of a row."""
    longest = max(num_tokens_of([demonstration(job.task, row) for row in job.choosing], job.backbone))
    lengths = num_tokens_of(texts, job.backbone)
    return numbers_that_fit(job.backbone, lengths, job.effort.passages, longest, "passages")


def _indexes(job: Job) -> Sequence[Index]:
    """What passages can be found by; hidden states are those of causal models."""
    indexes: list[Index] = [WordIndex(job.task, job.passages)]
    if isinstance(job.backbone, CausalBackbone):
        indexes.append(StateIndex.of_texts(job.backbone, job.words, job.passages, job.choosing))
    return indexes
