"""Compares the ways: the same rows for all, each way with each seed once, and what it all adds up to.

A part that is done is kept: the same call goes on where an earlier one stopped. Knows nothing of any single way.
"""

import dataclasses
import hashlib
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from accelerate.utils import set_seed
from tqdm.auto import tqdm

from ptuning.comparison.card import write_card
from ptuning.comparison.costs import MemoryMeter, speed_of
from ptuning.comparison.general_text import GENERAL_TEXT
from ptuning.comparison.page import write_page
from ptuning.comparison.parts import ComparisonDirectory, Part, PartDirectory
from ptuning.comparison.progress import BAR, seconds_left, told
from ptuning.comparison.prompting import base_noted
from ptuning.comparison.protocol import Effort, Fitted, Job, SkippedError, Way, accuracy, labels_of, some_of
from ptuning.comparison.reading import in_turn, text_ids, text_loss
from ptuning.comparison.recommendation import FEW_ROWS, Needs, recommend
from ptuning.comparison.report import Comparison
from ptuning.comparison.results import Costs, Results, TextLoss, WayResult
from ptuning.comparison.rules_of_thumb import rules_of_thumb
from ptuning.comparison.schema import MadeWith, PartFile
from ptuning.comparison.ways import ways_named
from ptuning.config import CompareConfig, ComparisonConfig, RunConfig
from ptuning.data import Row, Rows
from ptuning.errors import DataError, PTuningError, TrainingError
from ptuning.model import Backbone
from ptuning.training import Given, Inputs, Interrupted, raised_interrupts

_log = logging.getLogger(__name__)

CURVE = (16, 64, 256)
"""Training rows of a learning curve, beside all."""
_MOST_CHARACTERS = 1 << 18  # of a general text
_QUICK_ROWS = {"train": 500, "validation": 50, "test": 200}
_QUICK_STEPS = 60
_QUICK_EFFORT: dict[str, Any] = {
    **{"num_draws": 2, "demonstrations": (2, 4), "num_evaluations": 4, "num_timings": 1},
    "num_verdict_rows": 0,  # a verdict reads so many rows ten times: on a CPU that takes a minute
}
_DECIDE_NOTHING = {  # settings that no part depends on
    *("output_dir", "report_to", "save_steps", "logging_steps"),
    *("ways", "seeds", "curve", "least_accuracy", "most_milliseconds"),
    *("data_changes_often", "many_tasks", "readable", "general_text"),  # the text is known by its content
}
_SOURCES = {"name_or_path", "revision", "train", "validation", "test"}  # rows and weights are known by their content


def compare(
    config: ComparisonConfig | RunConfig,
    *,
    rows: Mapping[str, Rows] | None = None,
    backbone: Backbone | None = None,
    verbose: bool = True,
) -> Comparison:
    """Compares ways to do a task on the same rows, and says which one to take.

    Every way learns from the training rows, lets the validation rows choose, and reads the test rows once. What is done
    is kept in `output_dir`; the same call again goes on from there.

    Args:
        config: The comparison; a training run's config is compared by the defaults.
        rows: Split -> rows, in place of the files that the config names; as in `train`.
        backbone: A loaded model, used as it is in place of the one that the config names.
        verbose: Whether progress is shown; warnings always are.

    Raises:
        PTuningError: When anything in the config, the data or the model is not usable, before anything is written.
        TrainingError: When the directory holds something else or is in use, and when no way could be measured.
        Interrupted: After Ctrl-C; what is done is kept.
    """
    config = config if isinstance(config, ComparisonConfig) else ComparisonConfig.of_run(config)
    ways, directory = ways_named(config.compare.ways), ComparisonDirectory(config.train.output_dir)
    directory.require_usable()
    if rows is None and config.data.test is None:
        raise DataError("a comparison without data.test", "test rows, which each way reads once", "Name some")
    inputs = Inputs.load(config.run, config.model.device, Given(rows, backbone, verbose))
    bench = Bench.of(config, inputs)
    directory.acquire()
    try:
        directory.begin(_made_with(config, bench, inputs.weights_sha256))
        with raised_interrupts():
            comparison = _compared(config, bench, ways, directory, verbose)
            if inputs.backbone.weights_sha256() != inputs.weights_sha256:
                raise AssertionError("the frozen model's weights changed in a comparison")
            comparison.save()
            write_page(comparison, directory.path / "comparison.html")
    except KeyboardInterrupt:
        again = "the same command goes on from there" if rows is None else "the same call goes on from there"
        raise Interrupted(f"interrupted; what is done is kept in {directory.path}: {again}") from None
    finally:
        directory.lock.release()
    return comparison


@dataclass(frozen=True)
class Bench:
    """What all ways are measured with."""

    backbone: Backbone
    """The frozen model."""
    config: RunConfig
    """The task, and how prompts are trained."""
    rows: Mapping[str, Sequence[Row]]
    """Split -> rows: train, validation and test."""
    effort: Effort
    """How much each way may try."""
    instruction: str | None
    """What a person would write."""
    general_ids: Sequence[Sequence[int]] = ()
    """A general text, in pieces, on which it is measured what is forgotten."""

    @classmethod
    def of(cls, config: ComparisonConfig, inputs: Inputs) -> "Bench":
        """The bench of a config.

        Raises:
            DataError: Without validation or test rows.
        """
        for split in ("validation", "test"):
            if split not in inputs.rows:
                raise DataError(f"a comparison without {split} rows", "some", f"Give data.{split}")
        rows, run, effort = dict(inputs.rows), config.run, Effort(config.compare.rates)
        if config.compare.quick:
            rows = {split: some_of(own, _QUICK_ROWS[split]) for split, own in rows.items()}
            effort = replace(effort, **_QUICK_EFFORT)
            steps = min(run.train.max_steps or _QUICK_STEPS, _QUICK_STEPS)
            between = max(1, steps // effort.num_evaluations)
            run = replace(run, train=replace(run.train, max_steps=steps, eval_steps=between))
        text = config.compare.general_text
        general_ids = text_ids(inputs.backbone, GENERAL_TEXT if text is None else _text_of(Path(text)))
        return cls(inputs.backbone, run, rows, effort, config.compare.instruction, general_ids)

    def job(self, part: Part, directory: PartDirectory) -> Job:
        """What a part is fitted with: fewer training rows come with as few validation rows, all labels in turn."""
        train, validation = self.rows["train"], self.rows["validation"]
        if part.num_train is not None:
            column = self.config.data.task.label_column
            train, validation = (in_turn(own, column, part.seed)[: part.num_train] for own in (train, validation))
        given = self.effort, self.instruction, self.general_ids
        return Job(self.backbone, self.config, train, validation, part.seed, directory.work, *given)


def _text_of(path: Path) -> str:
    """The beginning of a text file; raises `DataError` where it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.read(_MOST_CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        received = f"compare.general_text: {path} cannot be read ({error})"
        raise DataError(received, "a file of plain text in UTF-8", "Correct it") from error


def parts_of(ways: Sequence[Way], compare: CompareConfig, num_train: int) -> list[Part]:
    """All parts: ways with their seeds on all rows, then those of the curve.

    On fewer rows every way that reads rows depends on chance, by which rows these are.
    """
    seeds = range(1 if compare.quick else compare.seeds)
    parts = [Part(way.name, seed, None) for way in ways for seed in seeds if way.depends_on_chance or seed == 0]
    sizes = [size for size in CURVE if size < num_train] if compare.curve else []
    return [*parts, *(Part(way.name, seed, size) for size in sizes for way in ways if way.reads_rows for seed in seeds)]


def _compared(
    config: ComparisonConfig, bench: Bench, ways: Sequence[Way], directory: ComparisonDirectory, verbose: bool
) -> Comparison:
    """Makes all parts that are not done, and adds them up."""
    parts = parts_of(ways, config.compare, len(bench.rows["train"]))
    done, left_out = _done(parts, bench, {way.name: way for way in ways}, directory, verbose)
    results = _results(ways, done)
    if results is None:
        why = "; ".join(f"{name}: {each}" for name, each in left_out.items())
        raise TrainingError(f"no way could be measured ({why})", "one way or more", "Correct this")
    needs = _needs(config.compare, len(bench.rows["train"]))
    about = {"base": bench.backbone.name, **{f"{split} rows": f"{len(own):,}" for split, own in bench.rows.items()}}
    asked, rules = dataclasses.asdict(needs), rules_of_thumb(results, len(bench.rows["train"]))
    return Comparison(results, recommend(results, needs), left_out, about, directory.path, asked, rules)


def _done(
    parts: Sequence[Part], bench: Bench, ways: Mapping[str, Way], directory: ComparisonDirectory, verbose: bool
) -> tuple[dict[Part, PartFile], dict[str, str]]:
    """The results of all parts, new ones and those that were there, and the ways that are left out, with the reason."""
    done, left_out, seconds = dict[Part, PartFile](), dict[str, str](), dict[Part, float]()
    waiting = [part for part in parts if not directory.part(part).is_finished]
    with tqdm(total=len(parts), desc="comparing", bar_format=BAR, disable=not verbose, file=sys.stderr) as bar:
        for part in parts:
            own, started = directory.part(part), time.perf_counter()
            bar.set_postfix_str(f"{part}{told(seconds_left(waiting, seconds, left_out))}")
            if part.way not in left_out or own.is_finished:
                try:
                    done[part] = own.read() if own.is_finished else _made(ways[part.way], part, own, bench)
                except Exception as error:  # one way that fails must not stop the others
                    left_out[part.way] = _line_of(error)
                    if verbose:
                        bar.write(f"{part}: {left_out[part.way]}", file=sys.stderr)
            if part in waiting:
                waiting.remove(part)
                if part in done:
                    seconds[part] = time.perf_counter() - started
            bar.update()
    return done, left_out


def _line_of(error: Exception) -> str:
    """One line for a way that was skipped or failed."""
    if isinstance(error, SkippedError):
        return f"skipped: {error}"
    _log.debug("a way failed", exc_info=error)
    text = " ".join(str(error).split())
    return f"failed: {text if isinstance(error, PTuningError) else f'{type(error).__name__}: {text}'}"


def _made(way: Way, part: Part, directory: PartDirectory, bench: Bench) -> PartFile:
    """Fits a way, reads the test rows once, and writes the result."""
    job, task = bench.job(part, directory), bench.config.data.task
    way.require(job)
    directory.begin()
    set_seed(part.seed)
    meter, started = MemoryMeter(bench.backbone.device), time.perf_counter()
    fitted = way.fit(job)
    seconds, memory = time.perf_counter() - started, meter.added_bytes
    predicted = fitted.label_scores(bench.rows["test"]).argmax(dim=1).tolist()
    fitted.save(directory.way)
    result = _measured(part, fitted, job, predicted, labels_of(task, bench.rows["test"]), directory)
    result = replace(result, seconds=max(seconds, fitted.least_seconds), memory_bytes=memory)
    base_noted(directory.way, bench.backbone)
    write_card(directory.way, way, job, _way_result(way, [result]))
    directory.finish(result)
    return result


def _measured(
    part: Part, fitted: Fitted, job: Job, predicted: list[int], labels: list[int], directory: PartDirectory
) -> PartFile:
    """The result of a fitted way, but for what fitting took."""
    speed = speed_of(fitted, job.choosing, job.effort.num_timings)
    judged = some_of(job.validation, job.effort.num_verdict_rows)
    verdict = fitted.verdict(judged) if judged else None
    return PartFile(
        way=part.way,
        seed=part.seed,
        num_train=len(job.train),
        predicted=predicted,
        correct=[int(own == each) for own, each in zip(labels, predicted, strict=True)],
        validation_accuracy=accuracy(fitted, job.task, job.choosing),
        chosen=dict(fitted.chosen),
        num_trained=fitted.num_trained,
        seconds=0.0,
        memory_bytes=None,
        bytes_to_ship=fitted.bytes_to_ship(directory.way),
        text_loss=_text_losses(fitted, job),
        verdict=None if verdict is None else dict(verdict),
        extra_tokens=float(fitted.extra_tokens),
        milliseconds=speed.milliseconds,
        rows_per_second=speed.rows_per_second,
    )


def _text_losses(fitted: Fitted, job: Job) -> list[float] | None:
    """The general text's loss before and after, where fitting changed weights."""
    after = fitted.text_loss(job.general_ids)
    if after is None:
        return None
    with job.backbone.in_turn():
        return [text_loss(job.backbone.model, job.general_ids), after]


def _results(ways: Sequence[Way], done: Mapping[Part, PartFile]) -> Results | None:
    """The parts added up; None where there are none on all rows."""
    found = []
    for way in ways:
        whole = [result for part, result in done.items() if part.way == way.name and part.num_train is None]
        if not whole:
            continue
        curve, fewer = dict[int, list[float]](), dict[int, list[list[int]]]()
        for part, result in done.items():
            if part.way == way.name and way.reads_rows and any(each.num_train for each in done):
                curve.setdefault(result.num_train, []).append(mean(result.correct))
                if part.num_train is not None:
                    fewer.setdefault(part.num_train, []).append(result.correct)
        found.append(replace(_way_result(way, whole), curve=curve, fewer=fewer))
    return Results(found) if found else None


def _way_result(way: Way, parts: Sequence[PartFile]) -> WayResult:
    """A way's parts on the same rows, but for its curve."""
    return WayResult(
        name=way.name,
        title=way.title,
        facts=way.facts,
        correct=[each.correct for each in parts],
        costs=_costs(parts),
        chosen=parts[0].chosen,
        text_loss=_text_loss(parts),
        verdicts=[each.verdict for each in parts if each.verdict is not None],
    )


def _text_loss(parts: Sequence[PartFile]) -> TextLoss | None:
    """Means over seeds; None where the base stays as it is."""
    measured = [each.text_loss for each in parts if each.text_loss is not None]
    return TextLoss(*map(mean, zip(*measured, strict=True))) if measured else None


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


def _needs(compare: CompareConfig, num_train: int) -> Needs:
    names = [field.name for field in dataclasses.fields(Needs) if field.name != "few_rows"]
    return Needs(**{name: getattr(compare, name) for name in names}, few_rows=num_train < FEW_ROWS)


def _made_with(config: ComparisonConfig, bench: Bench, weights: str) -> MadeWith:
    """What all parts follow from."""
    settings = {
        f"{section}.{key}": value
        for section, values in dataclasses.asdict(config).items()
        for key, value in values.items()
        if key not in _DECIDE_NOTHING and not (section in ("model", "data") and key in _SOURCES)
    }
    settings |= dataclasses.asdict(bench.effort)
    settings["compare.general_text"] = hashlib.sha256(json.dumps(bench.general_ids).encode()).hexdigest()
    rows = {split: _digest(own) for split, own in bench.rows.items()}
    return MadeWith(json.loads(json.dumps(settings)), rows, weights)


def _digest(rows: Sequence[Row]) -> str:
    text = json.dumps([dict(row.values) for row in rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
