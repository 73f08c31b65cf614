"""A row's classification, and ensembles that combine several prompts' classifications into one.

Knows nothing of models.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ptuning.errors import PromptError

Combine = Literal["mean", "majority"]


@dataclass(frozen=True)
class Classification:
    """A row's label and the probabilities of all labels."""

    label: str
    """The most likely label."""
    probabilities: dict[str, float]
    """Label -> its probability among the labels, or its share of the votes; the values sum to 1."""

    @property
    def scores(self) -> dict[str, float]:
        """The same as `probabilities`."""
        return self.probabilities


@dataclass(frozen=True)
class Ensemble:
    """Several prompts for one task that classify each row together, in one batch."""

    prompts: Sequence[str]
    """The prompts' names."""
    combine: Combine = "mean"
    """mean: averages the probabilities. majority: one vote per prompt; a tie goes to the label with the higher mean."""

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) or not self.prompts:
            raise PromptError(f"Ensemble({self.prompts!r})", "the names of 1 or more prompts", "Give a list of names")
        if self.combine not in get_args(Combine):
            raise PromptError(f"combine={self.combine!r}", f"one of {', '.join(get_args(Combine))}", "Correct it")
        object.__setattr__(self, "prompts", tuple(self.prompts))


def combined(probabilities: Sequence[Mapping[str, float]], combine: Combine) -> Classification:
    """Combines the probabilities from one or more prompts into one classification."""
    mean = {label: sum(each[label] for each in probabilities) / len(probabilities) for label in probabilities[0]}
    if combine == "mean":
        return Classification(max(mean, key=mean.__getitem__), mean)
    votes = Counter(max(each, key=each.__getitem__) for each in probabilities)
    shares = {label: votes[label] / len(probabilities) for label in mean}
    return Classification(max(mean, key=lambda label: (shares[label], mean[label])), shares)
