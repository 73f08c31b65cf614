"""Compares the ways: the same rows for all, each way with each seed once, and what it all adds up to.

A part that is done is kept: the same call goes on where an earlier one stopped. Knows nothing of any single way.
"""

import dataclasses
import logging
import sys
import time
from collections.abc import Collection, Mapping, Sequence

from tqdm.auto import tqdm

from ptuning.comparison.adding_up import results_of
from ptuning.comparison.bench import Bench
from ptuning.comparison.general_text import read_general_text
from ptuning.comparison.identity import made_with
from ptuning.comparison.measuring import made
from ptuning.comparison.page import write_page
from ptuning.comparison.parts import ComparisonDirectory, Part
from ptuning.comparison.passages import read_passages
from ptuning.comparison.progress import BAR, seconds_left, told
from ptuning.comparison.protocol import SkippedError, Way
from ptuning.comparison.recommendation import FEW_ROWS, Needs, recommend
from ptuning.comparison.report import Comparison
from ptuning.comparison.rules_of_thumb import rules_of_thumb
from ptuning.comparison.schema import PartFile
from ptuning.comparison.ways import ways_named
from ptuning.config import CompareConfig, ComparisonConfig, RunConfig
from ptuning.data import Rows
from ptuning.errors import DataError, PTuningError, TrainingError
from ptuning.model import Backbone
from ptuning.training import Given, Inputs, Interrupted, raised_interrupts

_log = logging.getLogger(__name__)

CURVE = (16, 64, 256)
"""Training rows of a learning curve, beside all."""


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
    passages = read_passages(config.compare.documents) if config.compare.documents else ()
    text = read_general_text(config.compare.general_text)
    inputs = Inputs.load(config.run, config.model.device, Given(rows, backbone, verbose))
    bench = Bench.of(config, inputs, text, passages)
    directory.acquire()
    try:
        directory.begin(made_with(config, bench, inputs.weights_sha256))
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
    num_train = len(bench.rows["train"])
    parts, by_name = parts_of(ways, config.compare, num_train), {way.name: way for way in ways}
    done, failed = _done(parts, bench, by_name, directory, verbose)
    results = results_of(ways, done, bench.goal.measure)
    left_out, incomplete = told_of(failed, parts, done)
    if results is None:
        why = "; ".join(f"{name}: {each}" for name, each in left_out.items())
        raise TrainingError(f"no way could be measured ({why})", "one way or more", "Correct this")
    needs, budget = _needs(config.compare, num_train), config.compare.budget
    about = {"base": bench.backbone.name, **{f"{split} rows": f"{len(own):,}" for split, own in bench.rows.items()}}
    about |= bench.goal.about | ({"budget of each way": budget} if budget else {})
    asked, rules = dataclasses.asdict(needs), rules_of_thumb(results, num_train, budget is not None)
    return Comparison(results, recommend(results, needs), left_out, about, directory.path, asked, rules, incomplete)


def _done(
    parts: Sequence[Part], bench: Bench, ways: Mapping[str, Way], directory: ComparisonDirectory, verbose: bool
) -> tuple[dict[Part, PartFile], dict[Part, str]]:
    """The results of all parts, new ones and those that were there, and the first of each way that failed, and why."""
    done, failed, seconds = dict[Part, PartFile](), dict[Part, str](), dict[Part, float]()
    waiting = [part for part in parts if not directory.part(part).is_finished]
    with tqdm(total=len(parts), desc="comparing", bar_format=BAR, disable=not verbose, file=sys.stderr) as bar:
        for part in parts:
            own, started, given_up = directory.part(part), time.perf_counter(), {each.way for each in failed}
            bar.set_postfix_str(f"{part}{told(seconds_left(waiting, seconds, given_up))}")
            if part.way not in given_up or own.is_finished:
                try:
                    done[part] = own.read() if own.is_finished else made(ways[part.way], part, own, bench)
                except Exception as error:  # one way that fails must not stop the others
                    failed[part] = _line_of(error)
                    if verbose:
                        bar.write(f"{part}: {failed[part]}", file=sys.stderr)
            if part in waiting:
                waiting.remove(part)
                if part in done:
                    seconds[part] = time.perf_counter() - started
            bar.update()
    return done, failed


def told_of(
    failed: Mapping[Part, str], parts: Sequence[Part], done: Collection[Part]
) -> tuple[dict[str, str], dict[str, str]]:
    """The ways that are left out, and those of which some parts were measured, each with the reason."""
    left_out, incomplete = dict[str, str](), dict[str, str]()
    for part, why in failed.items():
        whole = [each for each in parts if each.way == part.way and each.num_train is None]
        num_done = sum(each in done for each in whole)
        if num_done:
            seeds = f"{num_done} of {len(whole)} seed{'s' if len(whole) > 1 else ''}"
            incomplete[part.way] = f"{part.which} {why}; measured on all rows with {seeds}"
        else:
            left_out[part.way] = why
    return left_out, incomplete


def _line_of(error: Exception) -> str:
    """One line for a way that was skipped or failed."""
    if isinstance(error, SkippedError):
        return f"skipped: {error}"
    _log.debug("a way failed", exc_info=error)
    text = " ".join(str(error).split())
    return f"failed: {text if isinstance(error, PTuningError) else f'{type(error).__name__}: {text}'}"


def _needs(compare: CompareConfig, num_train: int) -> Needs:
    names = [field.name for field in dataclasses.fields(Needs) if field.name != "few_rows"]
    return Needs(**{name: getattr(compare, name) for name in names}, few_rows=num_train < FEW_ROWS)
