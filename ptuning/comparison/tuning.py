"""Prompt tuning: ptuning's own run, with the config's own settings; and the same with a prompt for each row.

Knows nothing of the other ways.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from ptuning.comparison.budget import TRIAL_STEPS, pace_of, steps_within
from ptuning.comparison.protocol import Fact, Facts, Job, SkippedError, Way, Writer, Writing
from ptuning.comparison.reading import answer_losses, label_scores, num_tokens, written_answers
from ptuning.comparison.storage import Saved, write_own
from ptuning.config import RunConfig
from ptuning.data import Row
from ptuning.inspection import verdict_of
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt, encoders, initializers
from ptuning.training import PromptSteps, accelerator_on, train

_READS_TEXT: Literal["conditioned"] = "conditioned"
"""The encoder that reads each row's text."""
_OTHER_EVALUATIONS = 5
"""Of a run: the untrained prompt and the bare words, both sides at the end, and the score that chooses the rate."""


@dataclass
class Tuned(Writer):
    """A base with a soft prompt."""

    backbone: Backbone
    """The frozen model."""
    prompt: SoftPrompt
    """The prompt."""
    num_trained: int = 0
    extra_tokens: float = 0.0
    chosen: Mapping[str, str] = field(default_factory=dict)
    least_seconds: float = 0.0

    def label_scores(self, rows: Sequence[Row]) -> Tensor:
        """As in `Fitted`."""
        assert self.prompt.task is not None
        return label_scores(self.backbone, self.prompt.task, rows, self.prompt.on(self.backbone.device))

    def answers(self, rows: Sequence[Row], writing: Writing) -> list[str]:
        """As in `Writer`."""
        assert self.prompt.task is not None
        prompt = self.prompt.on(self.backbone.device)
        return written_answers(self.backbone, self.prompt.task, rows, writing, prompt)

    def answer_losses(self, rows: Sequence[Row]) -> Tensor:
        """As in `Writer`."""
        assert self.prompt.task is not None
        return answer_losses(self.backbone, self.prompt.task, rows, self.prompt.on(self.backbone.device))

    def verdict(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """As in `Fitted`."""
        found = verdict_of(self.prompt, self.backbone, [row.values for row in rows])
        return {"word": found.word, "sentence": found.sentence}

    def save(self, directory: Path) -> None:
        """As in `Fitted`."""
        self.prompt.save(directory / "prompt")
        assert self.prompt.task is not None
        write_own(directory, {"kind": "prompt-tuning", "task": vars(self.prompt.task)})

    @classmethod
    def load(cls, saved: Saved) -> Self:
        """Brings it back."""
        return cls(saved.base, SoftPrompt.load(saved.directory / "prompt"))


class PromptTuning(Way):
    """A soft prompt, trained as the config says."""

    name, title = "prompt-tuning", "virtual tokens, trained in front of the frozen base"
    facts: ClassVar[Facts] = Facts(
        learns=True,
        many_tasks=Fact(True, "each request brings its own prompt"),
        rows_count_at_once=Fact(False, "train again"),
        readable=Fact(False, "vectors; ptuning inspect says what they can be read as"),
        works_in_vllm=Fact(False, "needs --enable-prompt-embeds, and embeddings in each request"),
    )

    def config_of(self, job: Job) -> RunConfig:
        """The run's config, but for its rate, seed and directory."""
        return job.config

    def fit(self, job: Job) -> Tuned:
        """As in `Way`."""
        tried, settings = list[tuple[float, Tuned]](), self.config_of(job)
        for i, rate in enumerate(_rates(job, settings)):
            directory = job.directory / f"run-{i}"
            own = replace(
                settings.train,
                output_dir=str(directory),
                seed=job.seed,
                learning_rate=rate,
                max_eval_samples=len(job.choosing),
            )
            config = replace(settings, train=own)
            is_begun = (directory / "config.yaml").exists()
            if job.effort.seconds is not None:
                begun = RunConfig.from_yaml(directory / "config.yaml").train.max_steps if is_begun else None
                config = _of_steps(config, begun or _steps_within(job, i, config), job.effort.num_evaluations)
            prompt = _trained(job, config, is_begun)
            chosen = {"rate": f"{prompt.training['learning_rate']:.3g}", "step": str(prompt.training["best_step"])}
            tuned = Tuned(job.backbone, prompt, prompt.training["trainable_parameters"], chosen=chosen)
            tried.append((job.score(tuned), tuned))
        best = max(tried, key=lambda each: each[0])[1]
        more = num_tokens(job.backbone, job.task, job.choosing) - num_tokens(job.backbone, job.words, job.choosing)
        for i in range(len(tried)):
            shutil.rmtree(job.directory / f"run-{i}")
        least_seconds = sum(each.prompt.training["seconds"] for _, each in tried)
        return replace(best, extra_tokens=more, least_seconds=least_seconds)


def _trained(
    job: Job, config: RunConfig, is_begun: bool = False, on_step: Callable[[object], None] | None = None
) -> SoftPrompt:
    """Makes a run, or goes on with it."""
    rows = {"train": [row.values for row in job.train], "validation": [row.values for row in job.choosing]}
    with quiet_training():
        return train(config, is_begun, rows=rows, backbone=job.backbone, on_step=on_step, verbose=False).prompt


def _of_steps(config: RunConfig, num_steps: int, num_evaluations: int, **settings: Any) -> RunConfig:
    """The same run with so many steps, and at most so many evaluations on the way."""
    every = math.ceil(num_steps / num_evaluations)
    own = replace(config.train, max_steps=num_steps, num_train_epochs=None, eval_steps=every, **settings)
    return replace(config, train=own)


def _steps_within(job: Job, place: int, config: RunConfig) -> int:
    """Steps that fit into the budget, by a run of a few that is thrown away; it evaluates after the last one alone."""
    directory, ends = job.directory / "pace", list[float]()
    shutil.rmtree(directory, ignore_errors=True)
    trial = _of_steps(config, TRIAL_STEPS, 1, output_dir=str(directory), logging_steps=1)
    prompt = _trained(job, trial, on_step=lambda _: ends.append(time.perf_counter()))
    shutil.rmtree(directory)
    examples = job.backbone.coder(job.task).encode(job.train)
    steps = PromptSteps(job.backbone, examples, config.train, accelerator_on(job.backbone.device))
    tried = Tuned(job.backbone, prompt)
    return steps_within(job, place, steps.num_per_epoch, pace_of(ends), lambda: job.score(tried), _OTHER_EVALUATIONS)


class ConditionedPrompt(PromptTuning):
    """A prompt that a small trainable network makes for each row from its text; all else as in prompt tuning."""

    name, title = "conditioned-prompt", "virtual tokens that a small trained network makes from each row's own text"
    facts: ClassVar[Facts] = Facts(
        learns=True,
        many_tasks=Fact(True, "each request brings its own prompt"),
        rows_count_at_once=Fact(False, "train again"),
        readable=Fact(False, "a network that makes vectors"),
        works_in_vllm=Fact(False, "needs --enable-prompt-embeds, and the network run on each request's text"),
    )

    def require(self, job: Job) -> None:
        """As in `Way`."""
        if job.config.prompt.encoder == _READS_TEXT:
            received = f"prompt.encoder: {_READS_TEXT}"
            raise SkippedError(received, "another encoder", "Leave this way out: prompt-tuning is the same with it")

    def config_of(self, job: Job) -> RunConfig:
        """As in `PromptTuning`; what was set for another encoder is left to this one's defaults."""
        prompt = replace(job.config.prompt, encoder=_READS_TEXT, hidden_size=None)
        own = job.config.train
        forward = "auto" if own.forward == "shared_prefix" else own.forward
        train = replace(own, learning_rate="auto", readability=0.0, forward=forward)
        return replace(job.config, prompt=prompt, train=train)


@contextmanager
def quiet_training() -> Iterator[None]:
    """A run's warnings are not shown: they are about its validation rows, and the comparison tells what it is worth."""
    log = logging.getLogger("ptuning.training")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _rates(job: Job, config: RunConfig) -> Sequence[float | Literal["auto"]]:
    """The rates to try; the config's own alone may be auto."""
    own = config.train.learning_rate
    if job.effort.num_rates == 1:
        return [own]
    if own == "auto":
        deviation = initializers.deviation(job.backbone.vocabulary_VH)
        own = encoders.BY_NAME[config.prompt.encoder].rate_in_deviations * deviation
    return job.effort.rates(own)
