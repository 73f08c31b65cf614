"""Makes one part of a comparison: fits a way once, measures it, and writes what it gave.

Knows nothing of any single way, or of what parts add up to.
"""

import dataclasses
import time
from dataclasses import replace

from accelerate.utils import set_seed

from ptuning.comparison.adding_up import way_result
from ptuning.comparison.bench import Bench
from ptuning.comparison.card import write_card
from ptuning.comparison.costs import MemoryMeter, speed_of
from ptuning.comparison.parts import Part, PartDirectory
from ptuning.comparison.protocol import Fitted, Job, Way, some_of
from ptuning.comparison.reading import text_loss
from ptuning.comparison.results import Results
from ptuning.comparison.schema import PartFile
from ptuning.comparison.storage import base_noted


def made(way: Way, part: Part, directory: PartDirectory, bench: Bench) -> PartFile:
    """Fits a way, reads the test rows once, and writes the result."""
    job = bench.job(part, directory)
    bench.goal.require(way)
    way.require(job)
    directory.begin()
    set_seed(part.seed)
    meter, job = MemoryMeter(bench.backbone.device), replace(job, started=time.perf_counter())
    fitted = way.fit(job)
    seconds, memory = job.seconds_used, meter.added_bytes
    fitted.save(directory.way)
    base_noted(directory.way, bench.backbone, bench.goal.writing)
    result = _measured(part, fitted, job, bench, directory)
    result = replace(result, seconds=max(seconds, fitted.least_seconds), memory_bytes=memory)
    measured = Results([way_result(way, [result], bench.goal.measure)], bench.goal.measure)
    write_card(directory.way, way, job, measured, fitted.is_saved)
    directory.finish(result)
    return result


def _measured(part: Part, fitted: Fitted, job: Job, bench: Bench, directory: PartDirectory) -> PartFile:
    """The result of a fitted way, but for what fitting took."""
    goal, test = bench.goal, bench.rows["test"]
    answers = goal.answers(fitted, test)
    speed = speed_of(lambda rows: goal.answers(fitted, rows), job.choosing, job.effort.num_timings)
    judged = some_of(job.validation, job.effort.num_verdict_rows)
    verdict = fitted.verdict(judged) if judged else None
    return PartFile(
        way=part.way,
        seed=part.seed,
        num_train=len(job.train),
        answers=answers,
        scores=goal.scores(fitted, test, answers),
        chosen=dict(fitted.chosen),
        num_trained=fitted.num_trained,
        seconds=0.0,
        memory_bytes=None,
        bytes_to_ship=fitted.bytes_to_ship(directory.way),
        extra_tokens=float(fitted.extra_tokens),
        milliseconds=speed.milliseconds,
        rows_per_second=speed.rows_per_second,
        index=None if fitted.index_costs is None else dataclasses.asdict(fitted.index_costs),
        text_loss=_text_losses(fitted, bench),
        verdict=None if verdict is None else dict(verdict),
    )


def _text_losses(fitted: Fitted, bench: Bench) -> list[float] | None:
    """The general text's loss before and after, where fitting changed weights."""
    after = fitted.text_loss(bench.general_ids)
    if after is None:
        return None
    with bench.backbone.in_turn():
        return [text_loss(bench.backbone.model, bench.general_ids), after]
