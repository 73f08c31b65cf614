"""What an inspection comes to, before anyone shows it: a verdict, and the results of all measures by name.

Knows nothing of single measures, nor of how any of them is made or shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from ptuning.inspection.measures.catalogue import MEASURES
from ptuning.inspection.measures.nearest_tokens import FIDELITY_NOTE
from ptuning.inspection.measures.protocol import Measured
from ptuning.inspection.verdict import Verdict
from ptuning.inspection.vocabulary.neighbours import Metric


@dataclass(frozen=True)
class Contents:
    """What a prompt says, and how far it can be believed.

    Each measure is an attribute too, by its name: `report.ladder.table`; None where it was not made.
    """

    verdict: Verdict
    """The answer."""
    measures: Mapping[str, Measured] = field(default_factory=dict)
    """Name -> result, in the order in which they are shown."""
    num_rows: int | None = None
    """Rows that the verdict rests on; None where none were given."""
    row: Mapping[str, str] | None = None
    """The row whose own prompt was decoded; None for a prompt that is the same for all rows, or for a base."""
    metric: Metric = "cosine"
    """How distance to tokens was measured in the decoding."""
    note: str = FIDELITY_NOTE
    """What a decoding can and cannot say."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Where the prompt comes from, and what it was inspected with."""

    def __getattr__(self, name: str) -> Any:
        """The result of a measure; None for one of the catalogue that was not made."""
        made = vars(self).get("measures", {})
        if name not in made and name not in MEASURES:
            raise AttributeError(f"a report has no {name!r}")
        return made.get(name)

    def with_measures(self, *more: Measured) -> Self:
        """The report with further results behind its own."""
        return replace(self, measures={**self.measures, **{each.name: each for each in more}})

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data; measures that were not made are None."""
        return {
            "verdict": self.verdict.as_dict(),
            "metric": self.metric,
            "note": self.note,
            "provenance": dict(self.provenance),
            "row": self.row and dict(self.row),
            **dict.fromkeys(MEASURES),
            **{name: each.as_dict() for name, each in self.measures.items()},
        }
