"""What validation is compared with while a prompt trains: the untrained prompt, and the same words without a prompt.

Knows nothing of models, steps or files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from ptuning.evaluation import Metrics


def first_record(untrained: Metrics, without: Metrics | None) -> dict[str, Any]:
    """The log's record before the first step.

    Args:
        untrained: The untrained prompt on the validation rows.
        without: The same words without a prompt on the same rows; None where there are none.
    """
    record = {f"eval_{key}": value for key, value in untrained.as_dict().items()}
    if without is not None:
        values = without.as_dict()
        record |= {"baseline_accuracy": values["accuracy"], "baseline_loss": values["loss"]}
    return record


@dataclass(frozen=True)
class Baseline:
    """Two scores in one measure, beside which later ones are shown; None where one was not measured."""

    measure: Literal["accuracy", "loss"]
    """Which measure it is."""
    without: float | None = None
    """The score of the words without a prompt."""
    untrained: float | None = None
    """The score of the untrained prompt."""

    @classmethod
    def of_log(cls, records: Sequence[Mapping[str, Any]], measure: Literal["accuracy", "loss"]) -> Self:
        """Reads what a run logged before its first step; an older run logged nothing."""
        first = next((record for record in records if record["step"] == 0), {})
        return cls(measure, first.get(f"baseline_{measure}"), first.get(f"eval_{measure}"))

    @property
    def words_alone(self) -> str:
        """The end of the line on the untrained prompt; empty where there are no words alone."""
        return self._told({"without the prompt": self.without})

    def __str__(self) -> str:
        """The end of a line on a later validation; empty where nothing was measured."""
        return self._told({"without the prompt": self.without, "untrained": self.untrained})

    def _told(self, named: Mapping[str, float | None]) -> str:
        unit = "loss " if self.measure == "loss" else ""
        told = ", ".join(f"{name} {unit}{value:.3f}" for name, value in named.items() if value is not None)
        return told and f"; {told}"
