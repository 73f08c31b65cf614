"""What a run trains with, loaded and checked: the frozen model, the rows as examples, the initial embeddings.

Knows nothing of encoders, steps or the run's directory.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from ptuning.config import RunConfig
from ptuning.data import (
    Coder,
    Example,
    Row,
    Rows,
    Template,
    read_rows,
    require_small,
    require_sound,
    rows_of,
    split_off,
)
from ptuning.errors import DataError
from ptuning.forward import require_path
from ptuning.model import Backbone
from ptuning.training.memory import TokenLimit
from ptuning.training.soft_targets import SoftTargets
from ptuning.training.start import start_embeddings

SPLITS = ("train", "validation", "test")
_FEW = 50  # validation rows
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Given:
    """What a program gives beside a config."""

    rows: Mapping[str, Rows] | None = None
    """Split -> rows: "train", and if wanted "validation" and "test"; None: those that the config names."""
    backbone: Backbone | None = None
    """A loaded model, used as it is; None: the one that the config names."""
    verbose: bool = True
    """Whether the plan, the progress and the evaluations are shown."""
    soft_targets: SoftTargets | None = None
    """What a teacher says at the answers of the training rows; the loss is then the divergence from it."""

    def __post_init__(self) -> None:
        remedy = f"Name the splits {', '.join(SPLITS)}"
        if not isinstance(self.rows, Mapping | None):
            raise DataError(f"rows: {type(self.rows).__name__}", "a mapping from a split to its rows", remedy)
        unknown = [str(split) for split in self.rows or () if split not in SPLITS]
        if unknown:
            raise DataError(f"rows of {', '.join(unknown)}", "a mapping from a split to its rows", remedy)


_NOTHING = Given()


@dataclass(frozen=True)
class Inputs:
    """What a run trains with; nothing here changes in training."""

    backbone: Backbone
    """The frozen model."""
    weights_sha256: str
    """Digest of its weights as they were loaded."""
    coder: Coder
    """Turns the task's rows into examples."""
    rows: Mapping[str, Sequence[Row]]
    """Split -> rows: train; validation, where the config names it or some of train is set aside; test, where it is
    named."""
    examples: Mapping[str, Sequence[Example]]
    """The same rows as token ids."""
    start_PH: Tensor
    """The initial embeddings, `[P, H]`."""
    has_own_validation: bool
    """Whether validation rows were named or given, rather than set aside from the training rows."""
    sources: Mapping[str, str]
    """Split -> what the config names for it; empty where a program gave the rows."""
    soft_targets: SoftTargets | None = None
    """As in `Given`."""

    @classmethod
    def load(cls, config: RunConfig, device: str, given: Given = _NOTHING) -> Self:
        """Loads what a config names.

        Args:
            config: The run.
            device: Where the model runs.
            given: What a program gives in place of what the config names.

        Raises:
            PTuningError: When data or model cannot be used as the config asks.
        """
        data, settings = config.data, config.train
        rows, backbone = _read(config, given), given.backbone
        if given.soft_targets is None:  # a teacher may well give all rows one label
            require_sound(data.task, rows)
        has_own_validation = "validation" in rows
        if not has_own_validation:
            rows = _with_some_set_aside(config, rows)
        if backbone is None:
            backbone = Backbone.from_pretrained(**{**dataclasses.asdict(config.model), "device": device})
        require_path(backbone, settings.forward)
        coder = backbone.coder(data.task)
        examples = {split: coder.encode(each) for split, each in rows.items()}
        for split, each in examples.items():
            num_new_tokens = 0 if split == "train" else coder.longest_label  # evaluation reads each label behind a row
            names = [row.where for row in rows[split]]
            require_small(each, TokenLimit(settings.max_batch_tokens).num_tokens, num_new_tokens, names)
        start_PH = start_embeddings(config, backbone, coder, examples["train"])
        sources = _sources(config) if given.rows is None else {}
        sha256 = backbone.weights_sha256()
        soft = given.soft_targets
        return cls(backbone, sha256, coder, rows, examples, start_PH, has_own_validation, sources, soft)


def told_of_split(config: RunConfig, inputs: Inputs) -> str | None:
    """One sentence on which rows validate where none are named or given; None where some are, or none are wanted."""
    data, num_train = config.data, len(inputs.rows["train"])
    if inputs.has_own_validation or data.validation_split == 0:
        return None
    if "validation" not in inputs.rows:
        return f"no validation rows: {num_train} training rows are too few to set any aside; data.validation names some"
    num_validation = len(inputs.rows["validation"])
    how = "a share of each label" if data.verbalizer else "at random"
    little = f"; {num_validation} rows say little, so give more if you can" if num_validation < _FEW else ""
    return (
        f"{num_validation:,} of {num_train + num_validation:,} training rows are set aside as validation rows ({how}, "
        f"by train.seed); data.validation names others, data.validation_split another share (0: none){little}"
    )


def _read(config: RunConfig, given: Given) -> dict[str, Sequence[Row]]:
    """Split -> the rows that are named or given."""
    columns = config.data.task.columns
    rows: dict[str, Sequence[Row]]
    if given.rows is None:
        rows = {split: read_rows(each, split, columns) for split, each in _sources(config).items()}
    else:
        held = {split: given.rows.get(split) for split in SPLITS}
        rows = {split: rows_of(each, f"{split} row", columns) for split, each in held.items() if each is not None}
    if "train" not in rows:
        raise DataError("no training rows", "data.train in the config, or rows from a program", "Give some")
    return rows


def _sources(config: RunConfig) -> dict[str, str]:
    """Split -> what the config names for it."""
    named = {split: getattr(config.data, split) for split in SPLITS}
    return {split: source for split, source in named.items() if source}


def _with_some_set_aside(config: RunConfig, rows: Mapping[str, Sequence[Row]]) -> dict[str, Sequence[Row]]:
    """The rows with some of the training rows as validation rows, where there are enough."""
    data = config.data
    label_column = data.task.label_column if data.task.is_classification else None
    shown = Template.parse(data.template).field_names
    train, validation = split_off(rows["train"], data.validation_split, config.train.seed, label_column, shown)
    if not validation:
        _require_none_needed(config, len(train))
    return {**rows, "train": train, **({"validation": validation} if validation else {})}


def _require_none_needed(config: RunConfig, num_rows: int) -> None:
    """Raises `DataError` where a setting needs validation rows, and there are too few rows to set any aside."""
    patience, metric = config.train.early_stopping_patience, config.train.metric_for_best_model
    needed_by = {
        f"train.early_stopping_patience: {patience}": patience not in (None, "auto"),
        "train.metric_for_best_model: accuracy": metric == "accuracy",
    }
    for setting, is_on in needed_by.items():
        if is_on:
            raise DataError(
                f"{setting} with {num_rows} training rows, too few to set validation rows aside",
                "validation rows with it",
                f"Give some in data.validation, or change {setting.partition(':')[0]}",
            )
