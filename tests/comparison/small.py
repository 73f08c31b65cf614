"""A small comparison: a task that follows from one word, a tiny random model, few rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import review_rows

from ptuning.comparison.protocol import Effort, Job
from ptuning.config import ComparisonConfig
from ptuning.data import Row
from ptuning.model import Backbone

TEMPLATE = "{prompt:4}review: {text}\nsentiment:"
VERBALIZER = {"negative": " negative", "positive": " positive"}
WRITING = {"data__verbalizer": None, "data__answer": " {label}"}  # the same labels, to be written
ROWS = {"train": review_rows(20), "validation": review_rows(8, 40), "test": review_rows(12, 60)}


def config_in(directory: Path, **settings: Any) -> ComparisonConfig:
    """The config of a small comparison; settings have `__` for the dot."""
    given = {name.replace("__", "."): value for name, value in settings.items()}
    small = {
        "model.name_or_path": "tiny-llama",
        "data.template": TEMPLATE,
        "data.verbalizer": VERBALIZER,
        "train.output_dir": str(directory / "compared"),
        "train.max_steps": 3,
        "compare.seeds": 2,
        "compare.instruction": "a film {is} good or bad\n",
    }
    return ComparisonConfig.from_settings(small | given)


def rows(split: str) -> list[Row]:
    """The rows of a split, as ways get them."""
    return [Row(each, f"{split} row {i}") for i, each in enumerate(ROWS[split])]


def job(backbone: Backbone, directory: Path, **settings: Any) -> Job:
    """What a way is fitted with."""
    config = config_in(directory, **settings)
    return Job(backbone, config.run, rows("train"), rows("validation"), 0, directory, instruction="good or bad?\n")


def little(given: Job) -> Job:
    """The same with less to try."""
    return replace(given, effort=Effort(num_draws=1, demonstrations=(2,), num_evaluations=2, num_timings=1))
