"""What every measure is given, and what it gives: a table, a sentence on how to read it, and a chart as data.

Knows nothing of any single measure, nor of how pages and terminals show them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ptuning.data import Row
from ptuning.evaluation import Bars, Cloud, Curves, Table
from ptuning.forward import ReadOptions
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.inspection.vocabulary.neighbours import Metric
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt


@dataclass(frozen=True)
class Subject:
    """An inspected prompt, and everything that a measure may look at."""

    prompt: SoftPrompt
    """The prompt."""
    backbone: Backbone
    """The base model; without rows only its embeddings and tokenizer are used."""
    vocabulary: Vocabulary
    """The base model's vocabulary, made once for all measures."""
    shown_PH: Tensor
    """The embeddings that are decoded; for a conditioned prompt its base, or what it makes of one row."""
    init_ids: Sequence[int | None]
    """The token that each virtual token began at; None where that is not known."""
    rows: Sequence[Row] | None = None
    """Rows with answers; None: nothing is scored."""
    human: str | None = None
    """A person's prompt to score beside it."""
    run: Path | None = None
    """The training run's directory."""
    require_run: bool = True
    """Whether a run that cannot be followed is an error; False: a warning."""
    k: int = 5
    """Neighbours of each virtual token."""
    metric: Metric = "cosine"
    """How distance to tokens is measured."""
    seed: int = 0
    """Seed of everything random."""
    options: ReadOptions = ReadOptions()
    """How rows are read."""


@dataclass(frozen=True)
class Cell:
    """A token in a grid."""

    text: str
    """The token's text."""
    number: str = ""
    """A number beside it."""
    badges: Sequence[str] = ()
    """Short words behind it."""
    is_grey: bool = False
    """Whether it is played down."""


@dataclass(frozen=True)
class Grid:
    """A table for people, one line for each virtual token."""

    title: str
    """What it shows, for readers who cannot see it."""
    heads: Sequence[str]
    """The columns' headings."""
    rows: Sequence[Sequence[Any]]
    """Plain values and cells; the first value of a row is its heading."""
    is_matrix: bool = False
    """Whether the rows and the columns behind the first are the same things, counted against each other."""


Chart = Bars | Cloud | Curves | Grid | Table


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result of a measure."""

    name: str
    """Its key in JSON and its anchor on the page."""
    title: str
    """Its heading."""
    how: str
    """How to read it, in a sentence or a few."""
    table: Table
    """All its numbers."""
    chart: Chart | None = None
    """What people see first; None: the table."""
    lines: Sequence[str] = ()
    """The essence as plain text; none: only pages and JSON show it."""
    findings: Mapping[str, str] | None = None
    """Name -> value of single results that belong beside the verdict."""

    def as_dict(self) -> dict[str, Any]:
        """The result as plain data."""
        return self.table.as_dict()


Measure = Callable[[Subject, Mapping[str, Measured]], Measured | None]
"""A measure of a subject, given the results of earlier measures by name; None where it does not apply."""
