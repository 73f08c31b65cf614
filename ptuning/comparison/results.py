"""What the parts of a comparison add up to: scores, differences and costs of each way, with intervals.

The main score of a row is from 0 to 1: whether its label is right, or how like the expected text the written one is.

Knows nothing of models or files.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import mean, stdev

import torch

from ptuning.comparison.measures import ACCURACY
from ptuning.comparison.protocol import Facts, IndexCosts
from ptuning.evaluation import Estimate, Measure, Resampled, RowScores, Scores, half_width

_MEAN: Measure = "accuracy"  # what `Resampled` calls the mean of the scores that it is given
_POWER = 1.96 + 0.84  # normal quantiles of a 5 % test that finds a difference in 80 % of all samples


@dataclass(frozen=True)
class Costs:
    """What a way costs, as a mean over its seeds."""

    num_trained: int
    """Parameters that were fitted."""
    seconds: float
    """Seconds until it could answer, choices on validation rows included."""
    memory_bytes: int | None
    """The most memory that fitting took beside what was in use before; None where it was not measured."""
    bytes_to_ship: int
    """What is shipped beside the base."""
    extra_tokens: float
    """Tokens that it adds to a request."""
    milliseconds: float
    """A request by itself, nothing kept from earlier ones."""
    rows_per_second: float
    """Rows a second, 32 at once."""


@dataclass(frozen=True)
class TextLoss:
    """What a way that changes weights does to a general text: the mean loss of a token, in nats, over its seeds."""

    before: float
    """That of the base."""
    after: float
    """That of the model with its new weights."""

    @property
    def change(self) -> float:
        """How much it forgets."""
        return self.after - self.before


@dataclass(frozen=True)
class WayResult:
    """One way, on all training rows, with all its seeds."""

    name: str
    """The way's name."""
    title: str
    """What it does."""
    facts: Facts
    """What is known of it."""
    scores: Sequence[Sequence[float]]
    """For each seed, the main score of each test row."""
    costs: Costs
    """What it costs."""
    chosen: Mapping[str, str] = field(default_factory=dict)
    """What validation rows chose, with the first seed."""
    curve: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """Training rows -> the mean main score with each seed."""
    fewer: Mapping[int, Sequence[Sequence[float]]] = field(default_factory=dict)
    """Training rows, where there were fewer -> as `scores`."""
    other_scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The name of each other score -> its mean with each seed."""
    index: IndexCosts | None = None
    """What its index costs, with the first seed; None: it has none."""
    text_loss: TextLoss | None = None
    """What it does to a general text; None where the base stays as it is, and nothing is forgotten."""
    verdicts: Sequence[Mapping[str, str]] = ()
    """For each seed of a soft prompt the inspector's word and sentence."""
    reads_rows: bool = True
    """Whether it reads training rows."""

    @property
    def seed_scores(self) -> list[float]:
        """The mean main score with each seed."""
        return [sum(own) / len(own) for own in self.scores]

    @property
    def score(self) -> float:
        """The mean main score."""
        return mean(self.seed_scores)

    @property
    def verdict(self) -> str:
        """The inspector's words with how many seeds have each; none for what it does not inspect."""
        counts = Counter(each["word"] for each in self.verdicts)
        return ", ".join(word if num == len(self.verdicts) else f"{word} {num}x" for word, num in counts.most_common())

    @property
    def spread(self) -> float | None:
        """Half of Student's 95 % interval of the mean over seeds; None with one seed."""
        return half_width(self.seed_scores)


@dataclass(frozen=True)
class Results:
    """All ways on the same test rows, in the order of the table of ways: the simplest first."""

    ways: Sequence[WayResult]
    """The ways that could be measured."""
    measure: str = ACCURACY
    """The name of the main score."""

    def __post_init__(self) -> None:
        assert len({len(own) for way in self.ways for own in way.scores}) == 1, "other test rows"

    @property
    def num_rows(self) -> int:
        """Test rows."""
        return len(self.ways[0].scores[0])

    @property
    def other_measures(self) -> list[str]:
        """The names of the other scores."""
        return list(dict.fromkeys(name for way in self.ways for name in way.other_scores))

    @property
    def names(self) -> list[str]:
        """The ways' names."""
        return [way.name for way in self.ways]

    def __getitem__(self, name: str) -> WayResult:
        return self.ways[self.names.index(name)]

    @cached_property
    def _resampled(self) -> Resampled:
        return Resampled({way.name: _scores(way.scores) for way in self.ways})

    def score(self, name: str) -> Estimate:
        """The mean main score with a 95 % bootstrap interval over rows and seeds."""
        return self._resampled.mean(name, _MEAN)

    def gain(self, name: str, over: str) -> Estimate:
        """How much higher a way's main score is than another's on the same rows, with a 95 % bootstrap interval."""
        return self._resampled.gain(name, over, _MEAN)

    def is_better(self, name: str, over: str) -> bool:
        """Whether a way is shown to be better than another."""
        return self.gain(name, over).is_above_zero

    def best(self, names: Sequence[str]) -> str:
        """The way with the highest main score among some; the simplest of those that are equal."""
        return max(names, key=lambda name: self[name].score)

    def with_rows(self, num_train: int) -> "Results":
        """The ways with fewer training rows, so far as that was measured; those that read none stay as they are."""
        ways = [way for way in self.ways if not way.reads_rows or num_train in way.fewer]
        return Results([replace(way, scores=way.fewer.get(num_train, way.scores)) for way in ways], self.measure)

    def num_rows_to_tell(self, name: str, other: str) -> int | None:
        """About how many test rows would tell two ways apart, if they differ as they do here.

        None if they do not differ, or if there are as many rows: what stands in the way is then chance between seeds.
        """
        one, two = (_means(self[each].scores) for each in (name, other))
        differences = [a - b for a, b in zip(one, two, strict=True)]
        gain = mean(differences)
        if gain == 0 or len(differences) < 2:
            return None
        enough = math.ceil((_POWER * stdev(differences) / gain) ** 2)
        return enough if enough > self.num_rows else None

    def what_would_tell(self, name: str, other: str) -> str:
        """What would tell two ways apart that these rows and seeds do not, in words."""
        enough = self.num_rows_to_tell(name, other)
        if enough is not None:
            return f"about {enough:,} test rows would tell"
        return (
            "more seeds are needed" if self[name].score != self[other].score else "no number of rows is known to tell"
        )


def _means(scores: Sequence[Sequence[float]]) -> list[float]:
    """Each row's mean over seeds."""
    return [mean(row) for row in zip(*scores, strict=True)]


def _scores(scores: Sequence[Sequence[float]]) -> Scores:
    parts = [torch.tensor(own, dtype=torch.float32) for own in scores]
    rows = range(len(parts[0]))
    return Scores.several([(rows, RowScores(torch.zeros(len(own)), own, None)) for own in parts], len(rows))
