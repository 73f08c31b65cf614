"""What identifies a comparison: the settings, rows and weights that its parts follow from.

Knows nothing of files, or of how parts are made.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ptuning.comparison.bench import Bench
from ptuning.comparison.schema import MadeWith
from ptuning.config import ComparisonConfig

_DECIDE_NOTHING = {  # settings that no part depends on
    *("output_dir", "report_to", "save_steps", "logging_steps"),
    *("ways", "seeds", "curve", "least_accuracy", "most_milliseconds"),
    *("data_changes_often", "many_tasks", "readable"),
}
_SOURCES = {  # are known by their content
    *("name_or_path", "revision", "train", "validation", "test", "documents", "general_text"),
}


def made_with(config: ComparisonConfig, bench: Bench, weights: str) -> MadeWith:
    """What all parts follow from."""
    settings = {
        f"{section}.{key}": value
        for section, values in dataclasses.asdict(config).items()
        for key, value in values.items()
        if key not in _DECIDE_NOTHING and not (section in ("model", "data", "compare") and key in _SOURCES)
    }
    settings |= dataclasses.asdict(bench.effort)
    settings["compare.documents"] = _digest_of(bench.passages) if bench.passages else None
    settings["compare.general_text"] = _digest_of(bench.general_ids)
    rows = {split: _digest_of([dict(row.values) for row in own]) for split, own in bench.rows.items()}
    return MadeWith(json.loads(json.dumps(settings)), rows, weights)


def _digest_of(content: Sequence[Any]) -> str:
    text = json.dumps(list(content), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
