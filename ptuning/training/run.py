"""A training run: loads, makes steps, logs, validates, keeps checkpoints, measures and saves the prompt.

Knows nothing of how a step is made or a prompt is scored, nor of the command line. The order of the rows follows from
the seed and the step alone, so a run that is killed and resumed makes the same steps as one that is not.
"""

import copy
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import set_seed
from tqdm.auto import tqdm

from ptuning.config import RunConfig
from ptuning.data import Rows, doubts, warn_of_cut
from ptuning.errors import DiskFullError, OutOfMemoryError, TrainingError
from ptuning.evaluation import prediction_records, write_predictions
from ptuning.forward import BatchPrompt, as_batch_prompt
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt, encoders
from ptuning.training.checkpoint import checkpoint_of, made_with, require_same, restore
from ptuning.training.curves import draw_curves
from ptuning.training.distributed import accelerator, peak_memory_bytes, sum_over_processes
from ptuning.training.evaluator import Evaluator, sides_of
from ptuning.training.inputs import Given, Inputs, told_of_split
from ptuning.training.interrupts import Interrupted, noted_interrupts, raised_interrupts
from ptuning.training.loop import Loop, NotFiniteError, StepRecord
from ptuning.training.memory import out_of_memory
from ptuning.training.outcome import Outcome, Rate, measured
from ptuning.training.plan import lines_of_plan, told_duration
from ptuning.training.prompt_steps import PromptSteps
from ptuning.training.recipe import learning_rate, loop_settings
from ptuning.training.results import TrainResult, soft_prompt_of
from ptuning.training.run_directory import BEST, LAST, RunDirectory
from ptuning.training.validator import Validator

_log = logging.getLogger(__name__)
_LEAST_TOLD = 30.0  # seconds; what takes less is not announced


def train(
    config: RunConfig,
    resume: bool = False,
    *,
    rows: Mapping[str, Rows] | None = None,
    backbone: Backbone | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
    on_evaluate: Callable[[dict[str, Any]], None] | None = None,
    verbose: bool = True,
) -> TrainResult:
    """Trains a soft prompt as a config says, and saves it.

    Args:
        config: The run.
        resume: Whether to go on from the last checkpoint in `output_dir`, exactly; a run that has none starts anew,
            one that is finished is only read.
        rows: Split -> rows, in place of the files that the config names: "train", and if wanted "validation" and
            "test"; each a list of mappings, a data frame or a data set.
        backbone: A loaded model, used as it is in place of the one that the config names.
        on_step: Is called after every step; reading the record's loss waits for the device.
        on_evaluate: Is called with every line of metrics.jsonl that holds an evaluation.
        verbose: Whether the plan, the progress and the evaluations are shown; warnings always are.

    Raises:
        PTuningError: When anything in the config, the data or the model is not usable, before anything is written.
        TrainingError: When another process trains in `output_dir`, before anything is written; when the loss stops
            being finite, or memory or disk are full: the last good checkpoint is kept.
        Interrupted: After Ctrl-C, once a checkpoint is written.
    """
    return train_with(config, resume, Given(rows, backbone, verbose), on_step, on_evaluate)


def train_with(
    config: RunConfig,
    resume: bool,
    given: Given,
    on_step: Callable[[StepRecord], None] | None = None,
    on_evaluate: Callable[[dict[str, Any]], None] | None = None,
) -> TrainResult:
    """As `train`, with all that a program can give beside a config, a teacher's answers too."""
    directory = RunDirectory(config.train.output_dir)
    config = directory.with_its_defaults(config) if resume else config
    directory.require_usable(config, resume)
    if directory.is_finished:
        if given.rows is not None:
            _log.warning(f"{directory.path} is finished and is only read, whatever rows are given")
        directory.lock.sweep()
        return _finished(config, directory)
    with _full_disk_explained():
        trainer = Trainer(config, directory, resume, given)
        trainer.on_step, trainer.on_evaluate = on_step, on_evaluate
        return trainer.train()


def _finished(config: RunConfig, directory: RunDirectory) -> TrainResult:
    """The result of a run that has ended; nothing is loaded but its prompt."""
    result = TrainResult(SoftPrompt.load(directory.prompt), directory.prompt, directory.read_metrics())
    if dict(result.prompt.training) != result.metrics["training"]:
        raise TrainingError(
            f"{directory.prompt} holds a prompt of another run",
            "the one this run saved",
            "Move it away and resume again",
        )
    renamed = directory.renamed_sources(config)
    if renamed:
        _log.warning(f"{directory.path} is finished and is only read, whatever is in {' and '.join(renamed)} now")
    _tell_warning(result.metrics.get("compared"))  # older runs have none
    return result


def _tell_warning(compared: dict[str, Any] | None) -> None:
    if compared and compared["warning"]:
        _log.warning(compared["warning"])


@contextmanager
def _full_disk_explained() -> Iterator[None]:
    try:
        yield
    except DiskFullError as error:
        raise TrainingError(
            error.received,
            "room for the run's files",
            "Free some space and go on with --resume; what was saved before is intact",
        ) from error


class Trainer:
    """One run: everything is loaded and checked when it is made, and nothing is written before `train`.

    Args:
        config: The run.
        directory: Its files.
        resume: Whether it goes on from the directory's last checkpoint.
        given: What a program gives beside the config.
    """

    on_step: Callable[[StepRecord], None] | None = None
    """As in `train`; called on the main process."""
    on_evaluate: Callable[[dict[str, Any]], None] | None = None
    """As in `train`; called on the main process."""

    def __init__(
        self, config: RunConfig, directory: RunDirectory, resume: bool = False, given: Given | None = None
    ) -> None:
        self.config, self.directory, self.settings, self._is_resumed = config, directory, config.train, resume
        given = given or Given()
        self.accelerator = accelerator(config, given.backbone.device if given.backbone else None)
        self._require_alone(self._speaks and directory.lock.is_held_elsewhere)
        set_seed(self.settings.seed)
        device = str(self.accelerator.device) if config.model.device == "auto" else config.model.device
        self.inputs = Inputs.load(config, device, given)
        encoder = encoders.build(config.prompt.encoder, self.inputs.start_PH, config.prompt.hidden_size)
        self.encoder = encoder.to(self.inputs.backbone.device)
        self._untrained = copy.deepcopy(self.encoder.state_dict())
        train, soft_targets = self.inputs.examples["train"], self.inputs.soft_targets
        self.steps = PromptSteps(self.inputs.backbone, train, self.settings, self.accelerator, soft_targets)
        peak = learning_rate(self.settings, self.encoder, self.inputs.backbone)
        how = loop_settings(self.settings, peak, self.steps.num_steps)
        self.loop = Loop(self.encoder, self.steps, how, self.accelerator)
        self._is_shown = given.verbose and self._speaks
        self.evaluator = Evaluator(
            self.accelerator, self.inputs.backbone, self.settings, self.steps.limit, given.verbose
        )
        self.validator = Validator(config, self.inputs, self.steps, self.evaluator)
        self._warm: tuple[int, float] | None = None
        self._has_told_time = False

    def train(self) -> TrainResult:
        """Runs from wherever the run stands, then measures and saves the prompt."""
        try:
            self._begin()
            self._run_loop()
            if self.inputs.backbone.weights_sha256() != self.inputs.weights_sha256:
                raise AssertionError("the frozen model's weights changed in training")
            result = self._finished()
        finally:
            self.directory.lock.release()
        self.accelerator.end_training()
        return result

    def _finished(self) -> TrainResult:
        """Measures and saves the prompt; the last checkpoint holds all steps, whatever interrupts this."""
        try:
            with raised_interrupts():
                return self._finish()
        except KeyboardInterrupt:
            what = "interrupted before the prompt was measured and saved; all its steps are made"
            raise Interrupted(f"{what}: {self._how_to_go_on}") from None

    @property
    def _how_to_go_on(self) -> str:
        if not self.inputs.sources:  # a program gave the rows
            return f"its checkpoint is in {self.directory.path}: go on with resume=True"
        command = f"ptuning train --config {self.directory.config} --resume"
        return f"its checkpoint is in {self.directory.path}: go on with {command}"

    @property
    def _speaks(self) -> bool:
        return self.accelerator.is_main_process

    def _begin(self) -> None:
        """Locks the directory, and goes on from its last checkpoint if there is one."""
        if self._speaks:
            num_bytes = sum(each.numel() * each.element_size() for each in self.encoder.parameters())
            self.directory.require_space(3 * num_bytes)  # a checkpoint: the parameters and AdamW's two moments
        self._require_alone(self._speaks and not self.directory.lock.acquire())
        self.directory.require_usable(self.config, self._is_resumed)  # again: another run may have come and gone
        self.accelerator.wait_for_everyone()  # all have looked at the directory before one writes to it
        checkpoint = self.directory.load_checkpoint(LAST)
        if checkpoint is not None:
            require_same(checkpoint, self._made_with(), self.directory.path)
            best = restore(checkpoint, self.loop, self.steps.limit)
            self.validator.go_on_from(best, self.directory.read_log())
        if self._speaks:
            self.directory.start(self.config, self.loop.progress.step)
            if checkpoint is not None:
                done, of = self.loop.progress.step, self.loop.settings.max_steps
                self._show(f"going on from step {done:,} of {of:,}")
            else:
                self._tell_plan()
                self._save_snapshot()
                for doubt in doubts(self.config.data.task, self.inputs.rows):
                    _log.warning(doubt)
                self._tell_split()
            for split, examples in self.inputs.examples.items():
                warn_of_cut(split, examples)
        if self.settings.report_to != "none":
            self.accelerator.init_trackers("ptuning")

    def _tell_plan(self) -> None:
        how, batches = self.loop.settings, self.steps.batches_per_step
        self._show(*lines_of_plan(self.config, self.inputs, self.encoder, how, batches))

    def _show(self, *lines: str) -> None:
        if self._is_shown:
            print(*lines, sep="\n", file=sys.stderr)

    def _tell_split(self) -> None:
        told = told_of_split(self.config, self.inputs)
        if told:
            _log.warning(told)

    def _require_alone(self, is_refused: bool) -> None:
        """Ends every process when the main one finds the directory in use."""
        if sum_over_processes(self.accelerator, float(is_refused)) > 0:
            raise TrainingError(
                f"output_dir {self.directory.path} is in use by {self.directory.lock.holder}",
                "a directory in which no other run is at work",
                "Wait until that run ends, or choose another train.output_dir",
            )

    def _run_loop(self) -> None:
        if self.validator.stops_early:
            return
        bar = tqdm(
            total=self.loop.settings.max_steps,
            initial=self.loop.progress.step,
            desc="training",
            unit="step",
            disable=not self._is_shown,
        )
        with bar, noted_interrupts() as interrupted, self._kept_checkpoint_named():
            if self.loop.progress.step == 0 and self.validator.has_rows:
                self._measure_baseline(bar)
            for record in self.loop.steps():
                bar.update()
                self._after_step(record, bar)
                is_stopping = self._is_true_anywhere(bool(interrupted))
                if is_stopping:
                    self._tell(bar, "interrupted: ending after this step")
                if self._is_due(record, self.settings.save_steps) or self.validator.stops_early or is_stopping:
                    self._save(LAST)
                if is_stopping:
                    raise Interrupted(f"interrupted at step {record.step}; {self._how_to_go_on}")
                if self.validator.stops_early:
                    self._tell_early_stop(bar)
                    return

    def _after_step(self, record: StepRecord, bar: tqdm) -> None:
        """Tells, logs and validates when it is time."""
        if self._speaks and self.on_step:
            self.on_step(record)
        if self._is_due(record, self.settings.logging_steps):
            self._tell_time(bar)
            bar.set_postfix(loss=f"{record.loss:.3f}", refresh=False)
            self._log(
                {
                    "loss": self.loop.take_mean_loss(),
                    "learning_rate": record.learning_rate,
                    "grad_norm": record.grad_norm,
                    "tokens_per_second": record.tokens_per_second,
                    "peak_memory_bytes": peak_memory_bytes(self.inputs.backbone.device),
                }
            )
        if self.validator.has_rows and self._is_due(record, self.validator.eval_steps):
            self.loop.require_finite()  # the steps' own time ends here
            self._validate(bar)

    def _tell_time(self, bar: tqdm) -> None:
        """Says once, when the first steps have warmed up, how long the others will take."""
        progress, first = self.loop.progress, self._warm
        if first is None:
            self._warm = (progress.step, progress.seconds)
        elif not self._has_told_time:
            self._has_told_time = True
            left = self.loop.settings.max_steps - progress.step
            seconds = (progress.seconds - first[1]) / (progress.step - first[0]) * left
            if seconds >= _LEAST_TOLD:
                self._tell(bar, f"about {told_duration(seconds)} for the other {left:,} steps, evaluations apart")

    def _is_due(self, record: StepRecord, every: int) -> bool:
        return record.step % every == 0 or record.step == self.loop.settings.max_steps

    def _is_true_anywhere(self, value: bool) -> bool:
        """Whether it is true on any process: all of them then stop at the same step."""
        return sum_over_processes(self.accelerator, float(value)) > 0

    @contextmanager
    def _kept_checkpoint_named(self) -> Iterator[None]:
        """Adds to the error of a step that cannot be made which checkpoint the run keeps."""
        try:
            yield
        except OutOfMemoryError as error:
            step = self.loop.progress.step + 1
            raise out_of_memory(error, self.config, step, self._kept_step()) from error
        except NotFiniteError as error:
            kept_step = self._kept_step()
            kept = "no checkpoint yet" if kept_step is None else f"its checkpoint of step {kept_step}"
            raise TrainingError(
                f"{error.received}; {self.directory.path} keeps {kept}",
                error.expected,
                "Start a new run with a lower train.learning_rate or model.dtype: float32",
            ) from error

    def _kept_step(self) -> int | None:
        """The step of the last checkpoint; None where there is none."""
        checkpoint = self.directory.load_checkpoint(LAST)
        return checkpoint["progress"]["step"] if checkpoint else None

    def _log(self, record: dict[str, Any]) -> None:
        step = self.loop.progress.step
        if self._speaks:
            self.directory.require_there()
            self.directory.append_log({"step": step, **record})
            if self.on_evaluate and "eval_loss" in record:
                self.on_evaluate({"step": step, **record})
        self.accelerator.log(record, step=step)

    def _measure_baseline(self, bar: tqdm) -> None:
        """Measures what later validations are compared with."""
        with self._memory_explained():
            record, told = self.validator.measure_baseline(self._prompt())
        self._log(record)
        self._tell(bar, told)

    def _validate(self, bar: tqdm) -> None:
        with self._memory_explained():
            record, told, is_best = self.validator.validate(self.loop.progress.step, self._prompt())
        self._tell(bar, told)
        self._log(record)
        if is_best:
            self._save(BEST)

    def _tell_early_stop(self, bar: tqdm) -> None:
        best = self.validator.best
        if self.loop.progress.step == self.loop.settings.max_steps:
            return
        none_better = f"none better in {best.num_evaluations_without_improvement} evaluations"
        self._tell(bar, f"stopped early; the best step is {best.step}, {none_better}")

    def _tell(self, bar: tqdm, text: str) -> None:
        """Writes a line above the bar."""
        if self._is_shown:
            bar.write(f"step {self.loop.progress.step}: {text}", file=sys.stderr)

    @contextmanager
    def _memory_explained(self) -> Iterator[None]:
        try:
            yield
        except OutOfMemoryError as error:
            step = self.loop.progress.step
            raise out_of_memory(error, self.config, step, self._kept_step(), is_evaluation=True) from error

    @torch.no_grad()
    def _prompt(self) -> BatchPrompt:
        return as_batch_prompt(self.encoder)

    def _save(self, name: str) -> None:
        if self._speaks:
            self.directory.require_there()
            self._save_snapshot()  # first: a run that is killed between the two writes it again
            self.directory.save_checkpoint(
                name, checkpoint_of(self.loop, self.validator.best, self.steps.limit, self._made_with())
            )
        self.accelerator.wait_for_everyone()

    def _save_snapshot(self) -> None:
        self.directory.save_snapshot(self.loop.progress.step, self.encoder.base_PH)

    def _made_with(self) -> dict[str, Any]:
        return made_with(self.config, self.inputs, self.accelerator.num_processes)

    def _finish(self) -> TrainResult:
        """Measures the best prompt beside the same words without one, and saves it."""
        self._restore_best()
        split = next((split for split in ("test", "validation") if split in self.inputs.examples), None)
        outcome = self._outcome(split) if split else None
        results = {name: metrics.as_dict() for name, metrics in outcome.results.items()} if outcome else {}
        prompt = soft_prompt_of(self.encoder, self.config, self.inputs, self.loop, self.validator.best, split, results)
        metrics = {
            "split": split,
            "results": self._in_full(outcome),
            "compared": outcome and outcome.compared,
            "training": prompt.training,
            "base_weights_sha256": self.inputs.weights_sha256,
        }
        if self._speaks:
            self.directory.require_there()
            if outcome and split:
                self._keep(outcome, split)
            prompt.save(self.directory.prompt)
            draw_curves(self.directory.read_log(), self.directory.curves)
            self.directory.write_metrics(metrics)
        self.accelerator.wait_for_everyone()
        return TrainResult(prompt, self.directory.prompt, metrics)

    def _outcome(self, split: str) -> Outcome:
        task, train = self.config.data.task, self.inputs.examples["train"]
        automatic = learning_rate(replace(self.settings, learning_rate="auto"), self.encoder, self.inputs.backbone)
        rate = Rate(self.loop.settings.learning_rate, automatic)
        sides = sides_of(self.inputs.backbone, self._prompt(), task, self.inputs.rows[split])
        with self._memory_explained():
            return measured(self.evaluator, sides, train, split, rate, self.settings.seed)

    def _in_full(self, outcome: Outcome | None) -> dict[str, Any]:
        """Name -> metrics, those of each label included."""
        labels = list(self.config.data.verbalizer or ())
        return {name: metrics.as_dict(labels) for name, metrics in outcome.results.items()} if outcome else {}

    def _keep(self, outcome: Outcome, split: str) -> None:
        """Tells a warning, and writes what was predicted."""
        _tell_warning(outcome.compared)
        records = prediction_records(self.config.data.task, self.inputs.rows[split], outcome.scores)
        write_predictions(self.directory.predictions, records)

    def _restore_best(self) -> None:
        """Brings back the best prompt, where there were evaluations; no checkpoint is written of the untrained one."""
        best = self.directory.load_checkpoint(BEST)
        if self.validator.best.is_known and self.validator.best.step == 0:
            self.encoder.load_state_dict(self._untrained)
        elif best is not None:
            self.encoder.load_state_dict(best["encoder"])
        elif self.validator.best.step > 0:
            last = self.loop.progress.step
            _log.warning(f"the checkpoint of the best step, {self.validator.best.step}, is gone: step {last} is kept")
            self.validator.best.step = last
