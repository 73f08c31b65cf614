"""Rules of thumb on when to fine-tune a language model, and whether they held in a comparison.

They are those that articles give: with little data, data that changes often or dynamic context do not fine-tune; try
prompting first; from features over output layers to all layers both costs and performance increase. Of each group of
ways the best one speaks, so a group of many ways has a little more luck. A rule held or failed only where the
95 % interval of a paired difference says so; costs have none. Rows that do not change cannot show what articles say of
data that does: each rule says what was checked.

Knows nothing of how anything was measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ptuning.comparison.recommendation import FEW_ROWS
from ptuning.comparison.results import Results, WayResult
from ptuning.evaluation import Table

HELD, FAILED, NOT_TOLD = "held", "failed", "not told"
FINE_TUNED = ("output-layers", "lora", "last-block", "all-weights")
"""Ways that fine-tune the model's own layers."""
WITH_CONTEXT = ("documents", "retrieved-bm25", "retrieved-hidden")
"""Ways that look something up for each request."""
LEFT_TO_RIGHT = ("features", "output-layers", "all-weights")
"""The ways whose costs and performance are said to increase in this order."""
_CLOSE = 0.1  # two times whose ratio is nearer to 1 are not told apart
NO_CORRECTION = "both sides are the best of a group, chosen on the same test rows, without correction"
"""What the intervals leave out."""
_COLUMNS = {
    "rule": "what is commonly said, and what was checked",
    "here": "held or failed, as a paired 95 % interval shows it (of costs: a ratio); not told, where it does not",
    "numbers": f"what was measured; {NO_CORRECTION}",
}


@dataclass(frozen=True)
class Rule:
    """A rule of thumb, and how it fared."""

    says: str
    """The rule."""
    outcome: str
    """held, failed or not told."""
    why: str
    """The numbers."""


def rules_of_thumb(results: Results, num_train: int, has_budget: bool = False) -> list[Rule]:
    """How each rule fared.

    Args:
        results: What was measured.
        num_train: Training rows.
        has_budget: Whether ways had the same time, whatever they cost otherwise.
    """
    return [
        _little_data(results, num_train),
        _changing_data(results),
        _dynamic_context(results),
        _prompting_first(results),
        _performance_rises(results),
        _costs_rise(results, has_budget),
    ]


def rules_table(rules: Sequence[Rule]) -> Table:
    """The rules as a table."""
    return Table(_COLUMNS, [{"rule": each.says, "here": each.outcome, "numbers": each.why} for each in rules])


def _little_data(results: Results, num_train: int) -> Rule:
    """On the most training rows that are few."""
    says = f"With little data (fewer than {FEW_ROWS} rows) do not fine-tune; checked: prompting is better"
    sizes = {size for way in results.ways for size in way.fewer} | {num_train}
    few = max((size for size in sizes if size < FEW_ROWS), default=None)
    if few is None:
        return Rule(says, NOT_TOLD, f"All had {num_train:,} training rows; --curve measures fewer.")
    own = results if few == num_train else results.with_rows(few)
    return _between(says, own, _named(own, _prompts), _named(own, _fine_tunes), f" With {few} rows.")


def _changing_data(results: Results) -> Rule:
    """Ways for which a new row counts at once, against those that train again."""
    says = "With data that changes often do not fine-tune; checked: what takes new rows at once is better on these rows"
    says += ", which do not change"
    again, tuned = "", _named(results, _fine_tunes)
    if tuned:
        best = results[results.best(tuned)]
        again = f" {best.name} takes {best.costs.seconds:,.0f} s to fit again."
    at_once = _named(results, lambda way: way.facts.rows_count_at_once.is_so)
    return _between(says, results, at_once, tuned, again)


def _dynamic_context(results: Results) -> Rule:
    """Ways that look something up, against those that train."""
    says = (
        "Where what is needed differs by request, look it up and do not fine-tune; checked: looking up is better here"
    )
    looking = _named(results, lambda way: way.name in WITH_CONTEXT)
    return _between(says, results, looking, _named(results, _fine_tunes))


def _prompting_first(results: Results) -> Rule:
    """Ways that learn nothing, against all that learn."""
    says = "Try prompting first; checked: prompting, with rows and documents looked up or not, is better than learning"
    return _between(says, results, _named(results, _prompts), _named(results, lambda way: way.facts.learns))


def _performance_rises(results: Results) -> Rule:
    """Each step to the right must be a gain."""
    says = f"Performance increases from left to right ({', '.join(LEFT_TO_RIGHT)})"
    names = _in_order(results)
    if len(names) < 2:
        return Rule(says, NOT_TOLD, _missing(names))
    steps = list(pairwise(names))
    told = [f"{right} over {left}: {results.gain(right, left)}" for left, right in steps]
    rises = all(results.is_better(right, left) for left, right in steps)
    falls = any(results.is_better(left, right) for left, right in steps)
    return Rule(says, HELD if rises else FAILED if falls else NOT_TOLD, f"{'; '.join(told)}.")


def _costs_rise(results: Results, has_budget: bool) -> Rule:
    """Each step to the right must take longer to fit, by more than times scatter."""
    says = f"Costs increase from left to right ({', '.join(LEFT_TO_RIGHT)}); "
    says += f"checked: each takes over {_CLOSE:.0%} longer to fit, by times without an interval"
    names = _in_order(results)
    if has_budget:
        return Rule(says, NOT_TOLD, "With --budget what is trained in steps has the same time.")
    if len(names) < 2:
        return Rule(says, NOT_TOLD, _missing(names))
    costs = [results[name].costs for name in names]
    told = [
        f"{name} {own.seconds:,.1f} s, {own.num_trained:,} parameters" for name, own in zip(names, costs, strict=True)
    ]
    ratios = [after.seconds / max(1e-9, before.seconds) for before, after in pairwise(costs)]
    rises, falls = min(ratios) > 1 + _CLOSE, min(ratios) < 1 - _CLOSE
    return Rule(says, HELD if rises else FAILED if falls else NOT_TOLD, f"{'; '.join(told)}.")


def _between(says: str, results: Results, names: Sequence[str], others: Sequence[str], more: str = "") -> Rule:
    """Held where the best of some ways is shown to be better than the best of others, failed where it is worse."""
    if not names or not others:
        return Rule(says, NOT_TOLD, f"No way on {'the one' if not names else 'the other'} side was measured.{more}")
    one, other = results.best(names), results.best(others)
    told = f"{one} {results[one].score:.3f}, {other} {results[other].score:.3f}: {results.gain(one, other)}."
    if results.is_better(one, other):
        return Rule(says, HELD, f"{told}{more}")
    if results.is_better(other, one):
        return Rule(says, FAILED, f"{told}{more}")
    tell = results.what_would_tell(one, other)
    return Rule(says, NOT_TOLD, f"{told} {tell[:1].upper()}{tell[1:]}.{more}")


def _named(results: Results, is_one: Callable[[WayResult], bool]) -> list[str]:
    """The ways of a kind."""
    return [way.name for way in results.ways if is_one(way)]


def _prompts(way: WayResult) -> bool:
    return not way.facts.learns


def _fine_tunes(way: WayResult) -> bool:
    return way.name in FINE_TUNED


def _in_order(results: Results) -> list[str]:
    return [name for name in LEFT_TO_RIGHT if name in results.names]


def _missing(names: Sequence[str]) -> str:
    return f"Two or more of them are needed, and {len(names) or 'none'} was measured."
