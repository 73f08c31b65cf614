"""One run of a study: trains what it asks for, and scores it on validation and test rows.

Knows nothing of other runs, or of tables.
"""

import csv
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

import ptuning
from ptuning.config import RunConfig
from ptuning.data import Example, Row, read_rows
from ptuning.errors import ConfigError
from ptuning.evaluation import WITH, WITHOUT, RowScores, score_rows
from ptuning.forward import ReadOptions
from ptuning.prompts import PromptEncoder, encoders
from ptuning.training import Inputs, Loop, PromptSteps, StepWork, accelerator_on, learning_rate, loop_settings
from studies import pace
from studies.plan import Run
from studies.reading import read
from studies.tasks import StudyTask, few
from studies.weights import peft_encoder, trained_weights
from studies.words import with_demonstrations

WEIGHTS = ("lora", "all_weights")  # the kinds without virtual tokens
OWN = ("prompt", "ensemble")  # the kinds with one of ptuning's encoders
NUM_PROMPTS = 3  # of an ensemble
Score = Callable[[Sequence[Example]], RowScores]
Work = Callable[[int], StepWork]
How = Callable[[Run, RunConfig], dict[str, Any]]


def record_of(run: Run, task: StudyTask, folder: Path) -> dict[str, Any]:
    """Makes a run.

    Args:
        run: What is asked for.
        task: Its task, prepared.
        folder: An empty folder for its files.

    Returns:
        What is known of it: how it was made, accuracy and losses on validation and test rows, the seconds, and the
        device.
    """
    config = config_of(run, task, folder)
    set_seed(run.seed)
    by_kind: Mapping[str, How] = {
        "defaults": by_defaults,
        "words": by_words,
        "ensemble": by_ensemble,
        "readable": partial(by_reading, human=task.instruction),
        "hardened": partial(by_reading, human=task.instruction),
    }
    found = by_kind.get(run.kind, by_pieces)(run, config)
    return {"id": run.id, **vars(run), **found, "device": _device_name()}


def config_of(run: Run, task: StudyTask, folder: Path) -> RunConfig:
    """The run as a config of `ptuning train`; the rows that it may read are written to the folder."""
    rows = {split: read_rows(str(path), split, task.columns) for split, path in task.splits.items()}
    rows["train"] = few(rows["train"], run.num_train, run.seed)
    for split, most in (("validation", run.num_validation), ("test", run.num_test)):
        rows[split] = rows[split][:most]
    if run.kind == "defaults":
        del rows["validation"]  # as a newcomer has it: nothing but rows to train on
    settings = {
        "model.name_or_path": run.model,
        "data.template": task.template(run.slots),
        "data.answer": task.answer,
        "data.max_length": task.max_length,
        "train.output_dir": str(folder / "run"),
        "train.seed": run.seed,
        **{f"data.{split}": _written(each, folder / f"{split}.csv") for split, each in rows.items()},
        **run.settings,
    }
    if task.verbalizer:
        settings["data.verbalizer"] = dict(task.verbalizer)
    return RunConfig.from_settings(settings)


def _written(rows: Sequence[Row], path: Path) -> str:
    """Writes rows to a file; its name."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].values)
        writer.writeheader()
        writer.writerows(row.values for row in rows)
    return str(path)


def by_defaults(_: Run, config: RunConfig) -> dict[str, Any]:
    """What `ptuning train` gives, beside the bare words."""
    result = ptuning.train(config)
    measured = result.metrics["results"]
    return {
        "test": measured[WITH],
        "without": measured.get(WITHOUT),
        "seconds": result.prompt.training["seconds"],
        "steps": result.prompt.training["steps"],
    }


def by_reading(run: Run, config: RunConfig, human: str | None) -> dict[str, Any]:
    """What texts in a prompt's place score, beside the prompt that the last step gives."""
    inputs = Inputs.load(config, _device())
    alone = replace(config, data=replace(config.data, validation=None, validation_split=0, test=None))
    prompt = ptuning.train(alone, backbone=inputs.backbone).prompt
    rows = inputs.rows["train"], inputs.rows["test"]
    found = read(prompt, inputs.backbone, *rows, human, is_searched=run.kind == "hardened")
    return {**found, "seconds": prompt.training["seconds"], "steps": prompt.training["steps"]}


def by_words(run: Run, config: RunConfig) -> dict[str, Any]:
    """What the model says without any training."""
    inputs, started = Inputs.load(config, _device()), time.monotonic()
    task = with_demonstrations(config.data.task, inputs.rows["train"], run.num_shots, run.seed)
    coder, nothing = inputs.backbone.coder(task), torch.zeros(0, inputs.backbone.width)
    scores = {
        split: _measured(score_rows(inputs.backbone, nothing, coder.encode(inputs.rows[split]), coder.label_ids))
        for split in ("validation", "test")
    }
    return {**scores, "seconds": round(time.monotonic() - started, 2), "steps": 0}


def by_pieces(run: Run, config: RunConfig) -> dict[str, Any]:
    """What the last step gives: nothing is chosen on validation rows on the way."""
    made = _made(run, config)
    return {**{split: _measured(each) for split, each in made.scores.items()}, **made.about}


def by_ensemble(run: Run, config: RunConfig) -> dict[str, Any]:
    """What the mean of the label probabilities of several prompts gives, each trained with a seed of its own."""
    members = []
    for k in range(NUM_PROMPTS):
        seed = NUM_PROMPTS * run.seed + k
        set_seed(seed)
        members.append(_made(run, replace(config, train=replace(config.train, seed=seed))))
    scores = {
        split: _measured(averaged([each.scores[split] for each in members], members[0].labels[split]))
        for split in ("validation", "test")
    }
    seconds = round(sum(each.about["seconds"] for each in members), 2)
    return {**scores, "seconds": seconds, "steps": members[0].about["steps"]}


def averaged(members: Sequence[RowScores], labels: Sequence[int]) -> RowScores:
    """The scores of the mean of several prompts' label probabilities.

    Args:
        members: The scores of each prompt on the same N rows, over the labels.
        labels: The rows' labels.
    """
    all_KNC = torch.stack([each.labels_NC.log_softmax(dim=1) for each in members if each.labels_NC is not None])
    mean_NC, labels_N = all_KNC.exp().mean(dim=0), torch.tensor(labels)
    own_N = mean_NC.gather(1, labels_N[:, None])[:, 0].log()
    return RowScores(own_N, mean_NC.argmax(dim=1) == labels_N, mean_NC.log())


@dataclass(frozen=True)
class _Made:
    """What a training gave."""

    scores: Mapping[str, RowScores]
    """Split -> the scores of its rows."""
    labels: Mapping[str, Sequence[int]]
    """Split -> the rows' labels; 0 where answers are written."""
    about: Mapping[str, Any]
    """Seconds, steps, paces."""


def _made(run: Run, config: RunConfig) -> _Made:
    """Trains what a run asks for, and scores it."""
    inputs = Inputs.load(config, _device())
    num_virtual_tokens = inputs.coder.task.num_virtual_tokens
    if run.kind in WEIGHTS:
        inputs = _without_slots(inputs)
    accelerator = accelerator_on(inputs.backbone.device)
    steps = PromptSteps(inputs.backbone, inputs.examples["train"], config.train, accelerator)
    of_kind = _of_weights if run.kind in WEIGHTS else _of_prompt  # one of an ensemble too
    trained, work, score = of_kind(run, config, inputs, steps)
    peak, num_steps, found = _peak(run, config, trained, inputs), steps.num_steps, {}
    if run.peft_steps is not None:
        still = Loop(trained, work, loop_settings(config.train, 0.0, pace.STEPS), accelerator).steps()  # moves nothing
        paces = pace.measured(pace.PeftSteps(inputs.backbone, num_virtual_tokens, steps), lambda step: next(still))
        num_steps, found = paces.steps_for(run.peft_steps), {"paces": vars(paces)}
    loop = Loop(trained, work, loop_settings(config.train, peak, num_steps), accelerator)
    for _ in loop.steps():
        pass
    splits = ("validation", "test")
    scores = {split: score(inputs.examples[split]) for split in splits}
    labels = {split: [each.label or 0 for each in inputs.examples[split]] for split in splits}
    return _Made(scores, labels, {"seconds": round(loop.progress.seconds, 2), "steps": loop.progress.step, **found})


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"


def _peak(run: Run, config: RunConfig, trained: nn.Module, inputs: Inputs) -> float:
    """The run's highest learning rate."""
    if isinstance(trained, PromptEncoder) and run.kind in OWN:
        return learning_rate(config.train, trained, inputs.backbone)
    if config.train.learning_rate == "auto":
        raise ConfigError(f"kind: {run.kind} without train.learning_rate", "a rate", "Give train.learning_rate")
    return config.train.learning_rate


def _without_slots(inputs: Inputs) -> Inputs:
    """The same rows without virtual tokens."""
    coder = inputs.backbone.coder(inputs.coder.task.without_prompt())
    return replace(inputs, coder=coder, examples={split: coder.encode(each) for split, each in inputs.rows.items()})


def _of_prompt(run: Run, config: RunConfig, inputs: Inputs, steps: PromptSteps) -> tuple[nn.Module, Work, Score]:
    """A soft prompt: what is trained, the work of each step, and how rows are scored."""
    encoder: nn.Module
    if run.kind in OWN:
        encoder = encoders.build(config.prompt.encoder, inputs.start_PH, config.prompt.hidden_size)
    else:
        encoder = peft_encoder(run.kind, inputs.backbone, inputs.coder.task.num_virtual_tokens)
    encoder.to(inputs.backbone.device)

    def score(examples: Sequence[Example]) -> RowScores:
        with torch.no_grad():
            return score_rows(inputs.backbone, encoder(), examples, inputs.coder.label_ids, ReadOptions(batch_size=50))

    return encoder, steps, score


def _of_weights(run: Run, config: RunConfig, inputs: Inputs, steps: PromptSteps) -> tuple[nn.Module, Work, Score]:
    """The language model itself, in the same form."""
    backbone = inputs.backbone
    weights = trained_weights(backbone.name, run.kind, backbone.tokenizer.pad_token_id or 0, backbone.device)

    def add_gradients(_: nn.Module, scale: float, examples: Sequence[Example]) -> Tensor:
        return weights.add_gradients(scale, examples)

    def work(step: int) -> StepWork:
        of_prompt = steps(step)
        return replace(of_prompt, add_gradients=partial(add_gradients, examples=steps.examples_of(step)))

    return weights.trained, work, lambda examples: weights.score_rows(examples, inputs.coder.label_ids)


def _measured(scores: RowScores) -> dict[str, float]:
    """Accuracy, and the loss of a row's answer in nats."""
    found = {"accuracy": float(scores.is_correct_N.float().mean()), "loss": -float(scores.log_probs_N.mean())}
    return {key: round(value, 5) for key, value in found.items()}
