"""Which way to take: a small rule over what was measured and what is needed. It asks no model.

The rule, in order:

1. A way that does not meet a need is out: it is slower than `most_milliseconds`; new rows do not count at once; one
   base cannot serve many tasks with it; a person cannot read it.
2. With few training rows a way that learns is out, unless it is shown to be better than the best one that does not
   learn, and its worst seed is above it too.
3. Of those that are left, the one with the highest main score is the best. All that it is not shown to be better than
   are its equals: the 95 % interval of the paired difference holds 0.
4. With a `least_accuracy` its equals are all whose main score reaches it.
5. Of the equals the simplest is recommended: the one that stands first in the table of ways.

Knows nothing of how anything was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations

from ptuning.comparison.results import Results, WayResult

FEW_ROWS = 100
"""Training rows below which a way that learns must prove itself."""


@dataclass(frozen=True)
class Needs:
    """What the answer is needed for."""

    least_accuracy: float | None = None
    """The main score that is needed; None: the best there is."""
    most_milliseconds: float | None = None
    """The longest time of a request; None: any."""
    data_changes_often: bool = False
    """Whether new rows must count at once."""
    many_tasks: bool = False
    """Whether one base serves many tasks."""
    readable: bool = False
    """Whether a person must be able to read it."""
    few_rows: bool = False
    """Whether there are few training rows."""


@dataclass(frozen=True)
class Recommendation:
    """What to do, and why."""

    way: str | None
    """The way that is recommended; None where no way meets the needs."""
    runner_up: str | None
    """The next best; None where there is none."""
    is_told_apart: bool
    """Whether the recommended way is shown to be better than all others that meet the needs."""
    num_rows_to_tell: int | None
    """About how many test rows would tell the two apart, where these do not; None where rows alone would not."""
    sentence: str
    """What to do, in words."""
    reasons: Sequence[str] = field(default_factory=tuple)
    """The rule's steps as they went, with their numbers."""


def recommend(results: Results, needs: Needs) -> Recommendation:
    """Applies the rule.

    Args:
        results: What was measured.
        needs: What is needed.
    """
    out = {way.name: unmet for way in results.ways if (unmet := _unmet(way, needs))}
    left = [name for name in results.names if name not in out]
    reasons = [f"{name} is out: {', '.join(unmet)}" for name, unmet in out.items()]
    if needs.few_rows:
        unproven = _unproven(results, left)
        reasons += [
            f"{name} is out: with few training rows it is not shown to be better than {than}"
            for name, than in unproven.items()
        ]
        left = [name for name in left if name not in unproven]
    if not left:
        best = results.best(results.names)
        told = f"No way meets all needs. The best one, {best}, does not: {', '.join(out.get(best, []))}"
        return Recommendation(None, best, False, None, f"{told}.", reasons)
    best = results.best(left)
    equals = [name for name in left if name == best or not results.is_better(best, name)]
    if needs.least_accuracy is not None:
        enough = [name for name in left if results[name].score >= needs.least_accuracy]
        reasons.append(f"{results.measure} of {needs.least_accuracy:.3f} or more: {', '.join(enough) or 'none'}")
        equals = enough or equals
    if len(equals) > 1:
        reasons.append(f"as good as {best} for these needs: {', '.join(n for n in equals if n != best)}")
    return _told(results, needs, left, equals, reasons)


def _told(
    results: Results, needs: Needs, left: Sequence[str], equals: Sequence[str], reasons: Sequence[str]
) -> Recommendation:
    """The simplest of the equals, and how it stands beside the next best."""
    way = equals[0]
    others = [name for name in left if name != way]
    runner_up = results.best(others) if others else None
    is_told_apart = all(results.is_better(way, name) for name in others)
    sentence = f"Take {way}: {results.measure} {results.score(way)} on {results.num_rows:,} rows."
    if needs.least_accuracy is not None and results[way].score < needs.least_accuracy:
        sentence += f" No way that meets the other needs reaches {needs.least_accuracy:.3f}."
    if runner_up is None:
        return Recommendation(way, None, is_told_apart, None, f"{sentence} No other way meets the needs.", reasons)
    gain = results.gain(way, runner_up)
    sentence += f" The runner-up is {runner_up}: {results.score(runner_up)}."
    if results.is_better(way, runner_up):
        return Recommendation(way, runner_up, is_told_apart, None, f"{sentence} The difference is {gain}.", reasons)
    if results.is_better(runner_up, way):
        sentence += f" It is better, by {results.gain(runner_up, way)}, and {way} is enough and simpler."
        return Recommendation(way, runner_up, is_told_apart, None, sentence, reasons)
    enough, more = results.num_rows_to_tell(way, runner_up), results.what_would_tell(way, runner_up)
    sentence += f" These rows cannot tell the two apart (difference {gain}); {more}. {way} is the simpler one."
    if not any(results.is_better(*pair) for pair in permutations(left, 2)):
        sentence = f"Nothing can be told apart on these {results.num_rows:,} rows. {sentence}"
    return Recommendation(way, runner_up, is_told_apart, enough, sentence, reasons)


def _unmet(way: WayResult, needs: Needs) -> list[str]:
    """The needs that a way does not meet, in words."""
    facts, unmet = way.facts, []
    if needs.most_milliseconds is not None and way.costs.milliseconds > needs.most_milliseconds:
        unmet.append(f"{way.costs.milliseconds:.0f} ms a request, and at most {needs.most_milliseconds:g} are allowed")
    for is_needed, fact, what in (
        (needs.data_changes_often, facts.rows_count_at_once, "new rows do not count at once"),
        (needs.many_tasks, facts.many_tasks, "one base does not serve many tasks"),
        (needs.readable, facts.readable, "nobody can read it"),
    ):
        if is_needed and not fact.is_so:
            unmet.append(f"{what} ({fact.reason})")
    return unmet


def _unproven(results: Results, left: Sequence[str]) -> dict[str, str]:
    """With few rows: the ways that learn and are not shown to beat the best of those that do not, and that one."""
    plain = [name for name in left if not results[name].facts.learns]
    if not plain:
        return {}
    than = results.best(plain)
    return {
        name: than
        for name in left
        if results[name].facts.learns
        and not (results.is_better(name, than) and min(results[name].seed_scores) > results[than].score)
    }
