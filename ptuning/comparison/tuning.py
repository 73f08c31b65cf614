"""Prompt tuning: ptuning's own run, with the config's own settings.

Knows nothing of the other ways.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from ptuning.comparison.prompting import write_own
from ptuning.comparison.protocol import Fact, Facts, Fitted, Job, Way, accuracy
from ptuning.comparison.reading import label_scores, num_tokens
from ptuning.data import Row
from ptuning.inspection import verdict_of
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt, encoders, initializers
from ptuning.training import train


@dataclass
class Tuned(Fitted):
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

    def verdict(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """As in `Fitted`."""
        found = verdict_of(self.prompt, self.backbone, [row.values for row in rows])
        return {"word": found.word, "sentence": found.sentence}

    def save(self, directory: Path) -> None:
        """As in `Fitted`."""
        self.prompt.save(directory / "prompt")
        write_own(directory, {"kind": "prompt-tuning"})


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

    def fit(self, job: Job) -> Tuned:
        """As in `Way`."""
        tried = list[tuple[float, Tuned]]()
        for i, rate in enumerate(_rates(job)):
            directory = job.directory / f"run-{i}"
            own = replace(job.config.train, output_dir=str(directory), seed=job.seed, learning_rate=rate)
            config = replace(job.config, train=own)
            rows = {"train": [row.values for row in job.train], "validation": [row.values for row in job.validation]}
            is_begun = (directory / "config.yaml").exists()
            with _quiet():
                prompt = train(config, is_begun, rows=rows, backbone=job.backbone, verbose=False).prompt
            chosen = {"rate": f"{prompt.training['learning_rate']:.3g}", "step": str(prompt.training["best_step"])}
            tuned = Tuned(job.backbone, prompt, prompt.training["trainable_parameters"], chosen=chosen)
            tried.append((accuracy(tuned, job.task, job.choosing), tuned))
        best = max(tried, key=lambda each: each[0])[1]
        more = num_tokens(job.backbone, job.task, job.choosing) - num_tokens(job.backbone, job.words, job.choosing)
        for i in range(len(tried)):
            shutil.rmtree(job.directory / f"run-{i}")
        least_seconds = sum(each.prompt.training["seconds"] for _, each in tried)
        return replace(best, extra_tokens=more, least_seconds=least_seconds)


@contextmanager
def _quiet() -> Iterator[None]:
    """A run's warnings are not shown: they are about its validation rows, and the comparison tells what it is worth."""
    log = logging.getLogger("ptuning.training")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _rates(job: Job) -> Sequence[float | Literal["auto"]]:
    """The rates to try; the config's own alone may be auto."""
    own = job.config.train.learning_rate
    if job.effort.num_rates == 1:
        return [own]
    if own == "auto":
        deviation = initializers.deviation(job.backbone.vocabulary_VH)
        own = encoders.BY_NAME[job.config.prompt.encoder].rate_in_deviations * deviation
    return job.effort.rates(own)
