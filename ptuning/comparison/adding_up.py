"""Adds the parts of a comparison up to its results.

Knows nothing of how parts are made, or of what follows from the results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean

from ptuning.comparison.parts import Part
from ptuning.comparison.protocol import IndexCosts, Way
from ptuning.comparison.results import Costs, Results, TextLoss, WayResult
from ptuning.comparison.schema import PartFile


def results_of(ways: Sequence[Way], done: Mapping[Part, PartFile], measure: str) -> Results | None:
    """The parts added up; None where there are none on all rows."""
    found = []
    for way in ways:
        whole = [result for part, result in done.items() if part.way == way.name and part.num_train is None]
        if not whole:
            continue
        curve, fewer = dict[int, list[float]](), dict[int, list[list[float]]]()
        for part, result in done.items():
            if part.way == way.name and way.reads_rows and any(each.num_train for each in done):
                curve.setdefault(result.num_train, []).append(mean(result.scores[measure]))
                if part.num_train is not None:
                    fewer.setdefault(part.num_train, []).append(result.scores[measure])
        found.append(replace(way_result(way, whole, measure), curve=curve, fewer=fewer))
    return Results(found, measure) if found else None


def way_result(way: Way, parts: Sequence[PartFile], measure: str) -> WayResult:
    """A way's parts on the same rows, but for its curve."""
    return WayResult(
        name=way.name,
        title=way.title,
        facts=way.facts,
        scores=[each.scores[measure] for each in parts],
        costs=_costs(parts),
        chosen=parts[0].chosen,
        other_scores=_other_scores(parts, measure),
        index=_index_costs(parts[0].index),
        text_loss=_text_loss(parts),
        verdicts=[each.verdict for each in parts if each.verdict is not None],
        reads_rows=way.reads_rows,
    )


def _text_loss(parts: Sequence[PartFile]) -> TextLoss | None:
    """Means over seeds; None where the base stays as it is."""
    measured = [each.text_loss for each in parts if each.text_loss is not None]
    return TextLoss(*map(mean, zip(*measured, strict=True))) if measured else None


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
