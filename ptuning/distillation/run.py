"""Distils a text into virtual tokens: asks the teacher once, trains the student, measures both and what else could be.

What is done is kept in `output_dir`: the same call goes on where an earlier one stopped. Knows nothing of the command
line.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ptuning.comparison import Writing, in_turn, quiet_training, text_of
from ptuning.config import DistillationConfig, RunConfig
from ptuning.data import Row, Rows, read_rows, records, rows_of, text_ids
from ptuning.distillation.long_text import LongText
from ptuning.distillation.measuring import Judge, cache_bytes_per_token
from ptuning.distillation.report import Distillation
from ptuning.distillation.sides import STUDENT, TUNED, Side, without_prompts
from ptuning.distillation.start import STARTS
from ptuning.distillation.taught import Taught, kept
from ptuning.distillation.teacher import Teacher
from ptuning.errors import DataError, TrainingError
from ptuning.files import disk_errors
from ptuning.forward import ReadOptions
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt
from ptuning.training import DirectoryLock, Given, Inputs, Interrupted, raised_interrupts, train_with

_SPLITS = ("train", "validation", "test")
_LOCK, _START, _RUN, _TUNED, _PROMPT = "distill.lock", "start", "run", "tuned-run", "prompt"


def distill(
    config: DistillationConfig,
    *,
    rows: Mapping[str, Rows] | None = None,
    backbone: Backbone | None = None,
    verbose: bool = True,
) -> Distillation:
    """Makes virtual tokens that do what a long text does.

    The teacher is the frozen base with the text in front of each row, the student the same base with the virtual
    tokens in its place. The loss is the divergence of the student's distributions from the teacher's (forward
    Kullback-Leibler, temperature 1) at each token of the answers.

    Args:
        config: The distillation.
        rows: Split -> rows, in place of the files that the config names; as in `train`. Where answers are written they
            may lack them; the teacher's own are then what is expected.
        backbone: A loaded model, used as it is in place of the one that the config names.
        verbose: Whether progress is shown; warnings always are.

    Raises:
        PTuningError: When anything in the config, the data or the model is not usable.
        TrainingError: When the directory holds something else or is in use.
        Interrupted: After Ctrl-C; what is done is kept.
    """
    directory, lock = Path(config.train.output_dir), DirectoryLock(Path(config.train.output_dir) / _LOCK)
    _require_usable(directory)
    given, has_answers = _given(config, rows, backbone)
    inputs = Inputs.load(config.run, config.model.device, given)
    if not {"validation", "test"} & set(inputs.rows):
        raise DataError("a distillation without test or validation rows", "some to measure on", "Give data.test")
    work = Work(config, inputs, directory, has_answers, verbose)
    work.require_room()
    if not lock.acquire():
        raise TrainingError(
            f"output_dir {directory} is in use by {lock.holder}",
            "a directory in which no other distillation is at work",
            "Wait until that one ends, or choose another train.output_dir",
        )
    try:
        with raised_interrupts():
            found = work.distilled()
            found.save()
    except KeyboardInterrupt:
        again = "the same command goes on from there" if rows is None else "the same call goes on from there"
        raise Interrupted(f"interrupted; what is done is kept in {directory}: {again}") from None
    finally:
        lock.release()
    return found


@dataclass(frozen=True)
class Work:
    """One distillation, loaded and checked."""

    config: DistillationConfig
    """The config."""
    inputs: Inputs
    """The model and the rows."""
    directory: Path
    """Where everything is kept."""
    has_answers: bool
    """Whether rows bring the expected answers."""
    verbose: bool
    """Whether progress is shown."""

    @cached_property
    def text(self) -> LongText:
        """The text: the same for all rows but those that it shows."""
        asked, task = self.config.distill, self.config.data.task
        column = task.label_column if task.is_classification else None
        shown = in_turn(self.inputs.rows["train"], column, self.config.train.seed)[: asked.demonstrations]
        return LongText(task, _words(asked.text, asked.text_file), shown)

    @property
    def options(self) -> ReadOptions:
        """How rows are read."""
        return ReadOptions(self.config.train.per_device_eval_batch_size)

    @cached_property
    def teacher(self) -> Teacher:
        """The base with the text."""
        return Teacher(self.inputs.backbone, self.text, self.writing, self.config.distill.top_k, self.options)

    @property
    def writing(self) -> Writing:
        """When a written answer ends."""
        return Writing(self.config.distill.max_new_tokens, self.config.distill.stop_strings)

    def require_room(self) -> None:
        """Raises `DataError` where the text does not fit into the model's positions, with any row behind it."""
        backbone = self.inputs.backbone
        num_tokens, most = len(text_ids(backbone.tokenizer, [self.text.text()])[0]), backbone.max_positions
        longest = max(len(each) for split in self.inputs.examples.values() for each in split)
        if most is not None and num_tokens + longest > most:
            raise DataError(
                f"a text of {num_tokens:,} tokens in front of rows of up to {longest:,}",
                f"at most {most:,} together, the model's positions",
                "Shorten the text, show fewer demonstrations, or lower data.max_length",
            )

    def distilled(self) -> Distillation:
        """Does all that is not done, and measures."""
        taught = {split: self._taught(split) for split in self.inputs.rows}
        prompt = self._student(taught)
        sides = without_prompts(self.inputs.backbone, self.text, self.config.distill.baselines)
        sides.append(Side(STUDENT, self.config.data.task, prompt))
        if self.config.distill.baselines and self.has_answers:
            sides.append(Side(TUNED, self.config.data.task, self._tuned(), note="trained on the rows' own answers"))
        split = "test" if "test" in taught else "validation"
        expected = self.inputs.rows[split] if self.has_answers else taught[split].rows
        judge = Judge(
            self.inputs.backbone,
            self.config.data.task,
            expected,
            taught[split].rows,
            taught[split].targets,
            self.writing,
            self.options,
        )
        measured = [judge.measure(side) for side in self._shown("measuring", sides)]
        prompt = replace(prompt, results={})
        prompt.save(self.directory / _PROMPT)
        cache = cache_bytes_per_token(self.inputs.backbone)
        return Distillation(prompt, self.directory, measured, self._about(split, taught), cache)

    def _about(self, split: str, taught: Mapping[str, Taught]) -> dict[str, str]:
        """What else to tell."""
        chose = "" if split == "test" else ", which also chose the step"
        whose = "" if self.has_answers else "; their expected answers are the teacher's own, since they bring none"
        task = self.config.data.task
        kind = "accuracy" if task.is_classification else "character F1"
        return {
            "measured on": f"{len(taught[split].rows):,} {split} rows{chose}{whose}",
            "score": kind,
            "base": self.inputs.backbone.name,
            "trained on": f"{len(taught['train'].rows):,} rows, seed {self.config.train.seed}",
        }

    def _taught(self, split: str) -> Taught:
        """The rows of a split with what the teacher says."""
        rows, teacher = self.inputs.rows[split], self.teacher
        (column,) = self.config.data.task.answer_columns

        def ask() -> Taught:
            with self._bar(f"teacher, {split} rows", 2 * len(rows)) as bar:
                own = self.config.distill.answers == "rows" and split == "train"
                answered = rows if own else teacher.answered(rows, bar.update)
                return Taught(answered, teacher.targets(answered, bar.update))

        with disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        return kept(self.directory / f"teacher-{split}.safetensors", self._key(rows), rows, column, ask)

    def _key(self, rows: Sequence[Row]) -> str:
        """What a teacher's answers and the student's start follow from, as a digest."""
        asked, teacher = self.config.distill, self.teacher
        settings = [asked.top_k, asked.answers, asked.max_new_tokens, asked.stop_strings, asked.start]
        read = [teacher.text.task_with_it().template, self.config.data.task.verbalizer, self.config.data.chat_template]
        own = [dict(row.values) for row in rows]
        content = json.dumps([settings, read, self.inputs.weights_sha256, own])
        return hashlib.sha256(content.encode()).hexdigest()

    def _student(self, taught: Mapping[str, Taught]) -> SoftPrompt:
        """Trains the student, or goes on with it."""
        start = self.directory / _START
        if not start.exists():
            self._start().save(start)
        prompt = replace(self.config.prompt, init="prompt", init_prompt=str(start))
        config = replace(self._run_config(_RUN), prompt=prompt)
        rows = {split: [row.values for row in each.rows] for split, each in taught.items() if split != "test"}
        return self._trained(config, Given(rows, self.inputs.backbone, False, taught["train"].targets))

    def _start(self) -> SoftPrompt:
        """The prompt that training starts from."""
        backbone, task = self.inputs.backbone, self.config.data.task
        ids = text_ids(backbone.tokenizer, [self.text.text()])[0]
        start_PH = STARTS[self.config.distill.start](backbone.vocabulary_VH, ids, task.num_virtual_tokens)
        return SoftPrompt(start_PH, task, backbone.name, backbone.fingerprint, task_type=backbone.task_type)

    def _tuned(self) -> SoftPrompt:
        """A prompt of as many tokens that is tuned on the rows' own answers, with as many steps."""
        rows = {split: [row.values for row in self.inputs.rows[split]] for split in self.inputs.rows if split != "test"}
        return self._trained(self._run_config(_TUNED), Given(rows, self.inputs.backbone, False))

    def _run_config(self, name: str) -> RunConfig:
        """The config of a run of its own directory."""
        own = replace(self.config.train, output_dir=str(self.directory / name))
        return replace(self.config.run, train=own)

    def _trained(self, config: RunConfig, given: Given) -> SoftPrompt:
        """Makes a run, or goes on with it."""
        directory = Path(config.train.output_dir)
        with quiet_training(), self._bar(f"training, {directory.name}", config.train.max_steps) as bar:
            is_begun = (directory / "config.yaml").exists()
            return train_with(config, is_begun, given, on_step=lambda _: bar.update()).prompt

    def _bar(self, name: str, total: int | None) -> tqdm:
        return tqdm(total=total, desc=name, disable=not self.verbose, file=sys.stderr)

    def _shown(self, name: str, sides: Sequence[Side]) -> Iterator[Side]:
        return iter(tqdm(sides, desc=name, unit="side", disable=not self.verbose, file=sys.stderr))


def _given(
    config: DistillationConfig, rows: Mapping[str, Rows] | None, backbone: Backbone | None
) -> tuple[Given, bool]:
    """What is loaded with, and whether rows bring the expected answers; where they do not, these are empty."""
    task = config.data.task
    if task.is_classification:
        return Given(rows, backbone), True
    sources = rows if rows is not None else {name: each for name in _SPLITS if (each := getattr(config.data, name))}
    if "train" not in sources:
        return Given(rows, backbone), True  # `Inputs` tells
    first = next(iter(records(rows["train"])), {}) if rows is not None else None
    has_answers = _has(first, task.answer_columns) if rows is not None else _reads(str(sources["train"]), task.columns)
    if has_answers:
        return Given(rows, backbone), True
    if config.distill.answers == "rows":
        received = f"distill.answers: rows with rows without {', '.join(task.answer_columns)}"
        raise DataError(received, "rows with answers", "Give them, or leave the answers to the teacher")
    names = [name for name in task.columns if name not in task.answer_columns]
    found: dict[str, Rows] = {}
    for split, source in sources.items():
        own = read_rows(source, split, names) if isinstance(source, str) else rows_of(source, f"{split} row", names)
        found[split] = [{**row.values, **dict.fromkeys(task.answer_columns, "")} for row in own]
    return Given(found, backbone), False


def _has(record: Any, names: Sequence[str]) -> bool:
    return isinstance(record, Mapping) and all(name in record for name in names)


def _reads(source: str, names: Sequence[str]) -> bool:
    """Whether a file has all the columns."""
    try:
        read_rows(source, "train", names)
    except DataError:
        return False
    return True


def _words(text: str | None, file: str | None) -> str:
    """The words that a config gives."""
    if file is None:
        return text or ""
    found = text_of(Path(file), "distill.text_file")
    if not found.strip():
        raise DataError(f"distill.text_file: {file} holds no words", "a text", "Write one")
    return found


def _require_usable(directory: Path) -> None:
    """Raises `TrainingError` for a directory that holds something else."""
    with disk_errors(directory):
        held = {each.name for each in directory.iterdir()} - {_LOCK} if directory.is_dir() else set()
    if directory.is_file() or (held and not any(name.startswith("teacher-") for name in held)):
        raise TrainingError(
            f"output_dir {directory} holds something else than a distillation",
            "a new or empty directory, or that of this distillation",
            "Choose another train.output_dir",
        )
