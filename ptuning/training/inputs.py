"""What a run trains with, loaded and checked: the frozen model, the rows as examples, the initial embeddings.

Knows nothing of encoders, steps or the run's directory.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from ptuning.config import RunConfig
from ptuning.data import Coder, Example, Row, read_rows, require_small
from ptuning.forward import require_path
from ptuning.model import Backbone
from ptuning.training.memory import TokenLimit
from ptuning.training.start import start_embeddings


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
    """Split -> rows: train, and validation and test where the config names them."""
    examples: Mapping[str, Sequence[Example]]
    """The same rows as token ids."""
    start_PH: Tensor
    """The initial embeddings, `[P, H]`."""

    @classmethod
    def load(cls, config: RunConfig, device: str) -> Self:
        """Loads what a config names.

        Raises:
            PTuningError: When data or model cannot be used as the config asks.
        """
        data, settings = config.data, config.train
        sources = {"train": data.train, "validation": data.validation, "test": data.test}
        rows = {split: read_rows(source, split, data.task.columns) for split, source in sources.items() if source}
        backbone = Backbone.from_pretrained(**{**dataclasses.asdict(config.model), "device": device})
        require_path(backbone, settings.forward)
        coder = backbone.coder(data.task)
        examples = {split: coder.encode(each) for split, each in rows.items()}
        for split, each in examples.items():
            num_new_tokens = 0 if split == "train" else coder.longest_label  # evaluation reads each label behind a row
            names = [row.where for row in rows[split]]
            require_small(each, TokenLimit(settings.max_batch_tokens).num_tokens, num_new_tokens, names)
        start_PH = start_embeddings(config, backbone, coder, examples["train"])
        return cls(backbone, backbone.weights_sha256(), coder, rows, examples, start_PH)
