"""The label of a row, and how several prompts' answers become one.

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
    """A row's label."""

    label: str
    """The most likely label."""
    probabilities: dict[str, float]
    """Label -> its probability among the labels, or its share of the votes; they sum to 1."""

    @property
    def scores(self) -> dict[str, float]:
        """The same as `probabilities`."""
        return self.probabilities


@dataclass(frozen=True)
class Ensemble:
    """Several prompts for one task that answer each row together, in one batch."""

    prompts: Sequence[str]
    """Their names."""
    combine: Combine = "mean"
    """mean: their probabilities are averaged. majority: each has a vote; of equal votes the likelier label wins."""

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) or not self.prompts:
            raise PromptError(f"Ensemble({self.prompts!r})", "the names of one prompt or more", "Give a list of names")
        if self.combine not in get_args(Combine):
            raise PromptError(f"combine={self.combine!r}", f"one of {', '.join(get_args(Combine))}", "Correct it")
        object.__setattr__(self, "prompts", tuple(self.prompts))


def combined(probabilities: Sequence[Mapping[str, float]], combine: Combine) -> Classification:
    """The answer of several prompts, or of one."""
    mean = {label: sum(each[label] for each in probabilities) / len(probabilities) for label in probabilities[0]}
    if combine == "mean":
        return Classification(max(mean, key=mean.__getitem__), mean)
    votes = Counter(max(each, key=each.__getitem__) for each in probabilities)
    shares = {label: votes[label] / len(probabilities) for label in mean}
    return Classification(max(mean, key=lambda label: (shares[label], mean[label])), shares)
