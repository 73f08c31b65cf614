"""Adds the parts of a comparison up to its results.

Knows nothing of how parts are made, or of what follows from the results.
"""

from collections.abc import Mapping, Sequence
from statistics import mean

from ptuning.comparison.parts import Part
from ptuning.comparison.protocol import IndexCosts, Way
from ptuning.comparison.results import Costs, Results, WayResult
from ptuning.comparison.schema import PartFile


def results_of(ways: Sequence[Way], done: Mapping[Part, PartFile], measure: str) -> Results | None:
    """The parts added up; None where there are none on all rows."""
    found = []
    for way in ways:
        whole = [result for part, result in done.items() if part.way == way.name and part.num_train is None]
        if not whole:
            continue
        curve = dict[int, list[float]]()
        for part, result in done.items():
            if part.way == way.name and way.reads_rows and any(each.num_train for each in done):
                curve.setdefault(result.num_train, []).append(mean(result.scores[measure]))
        scores, costs, chosen = [each.scores[measure] for each in whole], _costs(whole), whole[0].chosen
        others, index = _other_scores(whole, measure), _index_costs(whole[0].index)
        found.append(WayResult(way.name, way.title, way.facts, scores, costs, chosen, curve, others, index))
    return Results(found, measure) if found else None


def _other_scores(parts: Sequence[PartFile], measure: str) -> dict[str, list[float]]:
    """The mean of each score but the main one with each seed, where every seed has it."""
    names = [name for name in parts[0].scores if name != measure and all(name in each.scores for each in parts)]
    return {name: [mean(each.scores[name]) for each in parts] for name in names}


def _costs(parts: Sequence[PartFile]) -> Costs:
    """Means over seeds."""
    memory = [each.memory_bytes for each in parts if each.memory_bytes is not None]
    return Costs(
        num_trained=parts[0].num_trained,
        seconds=mean(each.seconds for each in parts),
        memory_bytes=round(mean(memory)) if memory else None,
        bytes_to_ship=round(mean(each.bytes_to_ship for each in parts)),
        extra_tokens=mean(each.extra_tokens for each in parts),
        milliseconds=mean(each.milliseconds for each in parts),
        rows_per_second=mean(each.rows_per_second for each in parts),
    )


def _index_costs(told: Mapping[str, float] | None) -> IndexCosts | None:
    """What a part says of its index."""
    return None if told is None else IndexCosts(int(told["num_bytes"]), told["seconds"], told["milliseconds"])
