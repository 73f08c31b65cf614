"""The training loop, on accelerate: schedule, clipping, evaluation, best and last checkpoint, exact resume.

Knows nothing of how a prompt is placed or scored, nor of the command line. The order of the data is a function of the
seed and the step, so a run that is killed and resumed makes the same steps as one that is not.
"""

import dataclasses
import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from tqdm import tqdm

from ptuning.config import RunConfig
from ptuning.data import BatchStream, Example, num_cut, read_rows, require_small, warn_of_cut
from ptuning.errors import TrainingError
from ptuning.evaluation import Metrics, evaluate, with_and_without
from ptuning.forward import Prompt, ReadOptions, require_path
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt, encoders, initializers
from ptuning.training.backward import backward_in_parts
from ptuning.training.distributed import accelerator, peak_memory_bytes
from ptuning.training.interrupts import Interrupted, noted_interrupts
from ptuning.training.run_directory import BEST, LAST, RunDirectory
from ptuning.training.schedule import rate
from ptuning.training.start import start_embeddings

_ROWS_PER_EVALUATED = 10  # rows trained on for each that is evaluated, where the config does not say
_FEWEST_EVALUATED = 50


@dataclass(frozen=True)
class TrainResult:
    """What a run gives."""

    prompt: SoftPrompt
    """The tuned prompt: the best checkpoint's where there are validation rows, else the last step's."""
    directory: Path
    """The saved prompt's directory."""
    metrics: dict[str, Any]
    """What metrics.json holds."""


def train(config: RunConfig, resume: bool = False) -> TrainResult:
    """Trains a soft prompt as a config says, and saves it.

    Args:
        config: The run.
        resume: Whether to go on from the last checkpoint in `output_dir`, exactly; a run that has none starts anew,
            one that is finished is only read.

    Raises:
        PTuningError: When anything in the config, the data or the model is not usable, before anything is written.
        TrainingError: When the loss stops being finite, or the disk is full; the last good checkpoint is kept.
        Interrupted: After Ctrl-C, once a checkpoint is written.
    """
    run = RunDirectory(config.train.output_dir)
    run.require_usable(config, resume)
    if run.is_finished:
        result = TrainResult(SoftPrompt.load(run.prompt), run.prompt, run.read_metrics())
        if dict(result.prompt.training) != result.metrics["training"]:
            raise TrainingError(
                f"{run.prompt} holds a prompt of another run", "the one this run saved", "Move it away and resume again"
            )
        return result
    return Trainer(config, run).train()


@dataclass
class Progress:
    """What changes while training, besides the encoder and the optimizer."""

    step: int = 0
    best_step: int = 0
    best_value: float = math.inf
    num_evaluations_without_improvement: int = 0
    window_loss_sum: float = 0.0
    window_num_label_tokens: int = 0
    seconds: float = 0.0


class Trainer:
    """One run: everything is loaded and checked when it is made, and nothing is written before `train`."""

    def __init__(self, config: RunConfig, run: RunDirectory) -> None:
        self.config, self.run, self.settings = config, run, config.train
        data, self.task = config.data, config.data.task
        sources = {"train": data.train, "validation": data.validation, "test": data.test}
        self.rows = {split: read_rows(source, split, self.task.columns) for split, source in sources.items() if source}
        self.accelerator = accelerator(config)
        set_seed(self.settings.seed)
        device = str(self.accelerator.device) if config.model.device == "auto" else config.model.device
        self.backbone = Backbone.from_pretrained(**{**dataclasses.asdict(config.model), "device": device})
        require_path(self.backbone, self.settings.forward)
        self.stepping = self.backbone.with_checkpointing() if self.settings.gradient_checkpointing else self.backbone
        self.weights_sha256 = self.backbone.weights_sha256()
        self.coder = self.backbone.coder(self.task)
        self.examples = {split: self.coder.encode(each) for split, each in self.rows.items()}
        for split, examples in self.examples.items():
            num_new = (
                0 if split == "train" else self.coder.longest_label
            )  # a row is evaluated with each label behind it
            require_small(examples, self.settings.max_batch_tokens, num_new, [row.where for row in self.rows[split]])
        self.start_PH = start_embeddings(config, self.backbone, self.coder, self.examples["train"])
        encoder = encoders.build(config.prompt.encoder, self.start_PH, config.prompt.hidden_size)
        self._make_loop(encoder.to(self.backbone.device))

    def _make_loop(self, encoder: encoders.PromptEncoder) -> None:
        settings = self.settings
        lengths = [len(example) for example in self.examples["train"]]
        self.stream = BatchStream(lengths, settings.per_device_train_batch_size, settings.seed)
        self.batches_per_step = settings.gradient_accumulation_steps * self.accelerator.num_processes
        epochs = settings.num_train_epochs * self.stream.num_batches_per_epoch
        self.max_steps = settings.max_steps or max(1, math.ceil(epochs / self.batches_per_step))
        optimizer = torch.optim.AdamW(
            encoder.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.encoder, self.optimizer = self.accelerator.prepare(encoder, optimizer, device_placement=[False, False])
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(settings, self.max_steps, step))
        self.progress = Progress()

    def train(self) -> TrainResult:
        """Runs the loop from wherever the run stands, then measures and saves the prompt."""
        self.accelerator.wait_for_everyone()  # all have looked at the directory before one writes to it
        if self.accelerator.is_main_process:
            self.run.require_space(3 * sum(p.numel() * p.element_size() for p in self.encoder.parameters()))
            self.run.start(self.config)
        if self.settings.report_to != "none":
            self.accelerator.init_trackers("ptuning")
        self._resume()
        self._say_what_was_cut()
        self._loop()
        if self.backbone.weights_sha256() != self.weights_sha256:
            raise AssertionError("the frozen model's weights changed in training")
        result = self._finish()
        self.accelerator.end_training()
        return result

    def _say_what_was_cut(self) -> None:
        if self._speaks:
            for split, examples in self.examples.items():
                warn_of_cut(split, examples)

    def _loop(self) -> None:
        progress, settings = self.progress, self.settings
        bar = tqdm(total=self.max_steps, initial=progress.step, desc="training", unit="step", disable=not self._speaks)
        with bar, noted_interrupts() as interrupted:
            while progress.step < self.max_steps and not self._stops_early:
                record = self._step()
                bar.update()
                bar.set_postfix(loss=f"{record['loss']:.3f}")
                is_last = progress.step == self.max_steps
                if progress.step % settings.logging_steps == 0 or is_last:
                    self._log(self._window(record))
                if self.config.data.validation and (progress.step % settings.eval_steps == 0 or is_last):
                    self._validate(bar)
                stopping = self._sum(float(bool(interrupted))) > 0  # all processes stop at the same step
                if progress.step % settings.save_steps == 0 or is_last or self._stops_early or stopping:
                    self._save(LAST)
                if stopping:
                    where = f"its checkpoint is in {self.run.path}: go on with --resume"
                    raise Interrupted(f"interrupted at step {progress.step}; {where}")

    @property
    def _speaks(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def _stops_early(self) -> bool:
        patience = self.settings.early_stopping_patience
        return patience is not None and self.progress.num_evaluations_without_improvement >= patience

    def _step(self) -> dict[str, float]:
        """One optimizer step: gradients of all its batches, normalised by their label tokens together."""
        started = time.perf_counter()
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        first = self.progress.step * self.batches_per_step + rank
        numbers = [self.stream[i] for i in range(first, first + self.batches_per_step, processes)]
        examples = [self.examples["train"][i] for rows in numbers for i in rows]
        num_label_tokens = self._sum(sum(len(example.answer_ids) for example in examples))
        prompt, scale = self._prompt(self.encoder), processes / num_label_tokens
        settings = self.settings
        limits = settings.per_device_train_batch_size, settings.max_batch_tokens
        total = backward_in_parts(self.stepping, prompt, examples, scale, settings.forward, *limits)
        loss_total = self._sum(total)
        norm = self.accelerator.clip_grad_norm_(self.encoder.parameters(), self.settings.max_grad_norm).item()
        self._require_finite(loss_total, "loss")  # here every process has the same sum and stops at the same step
        self._require_finite(norm, "gradient")
        learning_rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        progress, seconds = self.progress, time.perf_counter() - started
        progress.step += 1
        progress.window_loss_sum += loss_total
        progress.window_num_label_tokens += int(num_label_tokens)
        progress.seconds += seconds
        num_tokens = self._sum(sum(example.num_text for example in examples))
        return {
            "loss": float(loss_total / num_label_tokens),
            "learning_rate": learning_rate,
            "grad_norm": norm,
            "tokens_per_second": num_tokens / seconds,
        }

    def _window(self, record: dict[str, float]) -> dict[str, float]:
        """The record of a step, with the loss of all steps since the last one."""
        progress = self.progress
        mean = progress.window_loss_sum / progress.window_num_label_tokens
        progress.window_loss_sum, progress.window_num_label_tokens = 0.0, 0
        return {**record, "loss": mean, "peak_memory_bytes": peak_memory_bytes(self.backbone.device)}

    def _log(self, record: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.run.append_log({"step": self.progress.step, **record})
        self.accelerator.log(record, step=self.progress.step)

    def _validate(self, bar: tqdm) -> None:
        metrics = self._evaluate(self._trained_prompt(), self._validation_sample(), None)
        if self._speaks:
            bar.write(f"step {self.progress.step}: validation {metrics}", file=sys.stderr)
        self._log({f"eval_{key}": value for key, value in metrics.as_dict().items()})
        progress = self.progress
        value = -metrics.accuracy if self.settings.metric_for_best_model == "accuracy" else metrics.loss
        if value < progress.best_value:
            progress.best_value, progress.best_step = value, progress.step
            progress.num_evaluations_without_improvement = 0
            self._save(BEST)
        else:
            progress.num_evaluations_without_improvement += 1

    def _evaluate(self, prompt: Prompt, examples: Sequence[Example], label: str | None) -> Metrics:
        """Evaluates on all processes, each its share of the rows."""
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        share, settings = examples[rank::processes], self.settings
        metrics = evaluate(
            self.backbone,
            prompt,
            share,
            self.coder.label_ids,
            ReadOptions(
                settings.per_device_eval_batch_size,
                settings.max_batch_tokens,
                settings.forward,
                progress=self._speaks and label is not None,
            ),
            label or "",
        )
        return Metrics(*(type(value)(self._sum(value)) for value in dataclasses.astuple(metrics)))

    def _validation_sample(self) -> list[Example]:
        """The validation rows used while training, the same random ones each time."""
        examples, settings = self.examples["validation"], self.settings
        num_trained = settings.eval_steps * self.batches_per_step * settings.per_device_train_batch_size
        limit = settings.max_eval_samples or max(num_trained // _ROWS_PER_EVALUATED, _FEWEST_EVALUATED)
        return random.Random(settings.seed).sample(examples, min(limit, len(examples)))

    def _sum(self, value: float) -> float:
        """The sum over all processes."""
        if self.accelerator.num_processes == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(total, reduction="sum"))

    @staticmethod
    def _prompt(encoder: Any) -> Prompt:
        """What the forward pass takes: the encoder's embeddings, or the encoder where it reads each row first."""
        return encoder if getattr(encoder, "module", encoder).reads_text else encoder()

    @torch.no_grad()
    def _trained_prompt(self) -> Prompt:
        return self._prompt(self.accelerator.unwrap_model(self.encoder))

    def _require_finite(self, value: float, what: str) -> None:
        if math.isfinite(value):
            return
        checkpoint = self.run.load_checkpoint(LAST)
        kept = f"its checkpoint of step {checkpoint['progress']['step']}" if checkpoint else "no checkpoint yet"
        raise TrainingError(
            f"{what} {value} at step {self.progress.step + 1}; {self.run.path} keeps {kept}",
            "a finite number",
            "Start a new run with a lower train.learning_rate or model.dtype: float32",
        )

    def _save(self, name: str) -> None:
        if self.accelerator.is_main_process:
            state = {
                "encoder": self.accelerator.unwrap_model(self.encoder).state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "progress": dataclasses.asdict(self.progress),
                "random": torch.get_rng_state(),
                "made_with": self._made_with(),
            }
            self.run.save_checkpoint(name, state)
            self._snapshot()
        self.accelerator.wait_for_everyone()

    def _snapshot(self) -> None:
        """Keeps the prompt as it is, a conditioned one's base."""
        encoder = self.accelerator.unwrap_model(self.encoder)
        self.run.save_snapshot(self.progress.step, encoder.prompt_PH if encoder.reads_text else encoder())

    def _resume(self) -> None:
        """Takes everything up from the last checkpoint, if there is one."""
        state = self.run.load_checkpoint(LAST)
        if self.accelerator.is_main_process:
            self.run.cut_log(state["progress"]["step"] if state else 0)
        if state is None:
            if self.accelerator.is_main_process:
                self._snapshot()
            return
        now = self._made_with()
        changed = [what for what, value in state["made_with"].items() if value != now[what]]
        if changed:
            raise TrainingError(
                f"--resume of {self.run.path} with other {' and '.join(changed)}",
                "what the run was started with",
                "Set it back, or start a new run",
            )
        self.accelerator.unwrap_model(self.encoder).load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["random"])

    def _made_with(self) -> dict[str, Any]:
        """What decides a step besides the settings."""
        rows = [[example.ids, example.answer_ids] for example in self.examples["train"]]
        return {
            "training rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            "number of processes": self.accelerator.num_processes,
            "weights or precision of the base model": self.weights_sha256,
        }

    def _finish(self) -> TrainResult:
        """Measures the best prompt beside the same words without one, and saves it."""
        best = self.run.load_checkpoint(BEST)
        if best is not None:
            self.accelerator.unwrap_model(self.encoder).load_state_dict(best["encoder"])
        split = next((split for split in ("test", "validation") if split in self.examples), None)
        results = self._results(split) if split else {}
        prompt = self._soft_prompt({name: metrics.as_dict() for name, metrics in results.items()})
        metrics = {
            "split": split,
            "results": prompt.results,
            "training": prompt.training,
            "base_weights_sha256": self.weights_sha256,
        }
        if self.accelerator.is_main_process:
            prompt.save(self.run.prompt)
            self.run.write_metrics(metrics)
        self.accelerator.wait_for_everyone()
        return TrainResult(prompt, self.run.prompt, metrics)

    def _results(self, split: str) -> dict[str, Metrics]:
        prompt = self._trained_prompt()
        compared = with_and_without(self.backbone, prompt, self.task, self.rows[split], with_baseline=True)
        return {name: self._evaluate(each, rows, f"{split} rows, {name}") for name, each, rows, _ in compared}

    def _soft_prompt(self, results: dict[str, Any]) -> SoftPrompt:
        config, progress = self.config, self.progress
        encoder = self.accelerator.unwrap_model(self.encoder)
        init = {"kind": config.prompt.init, "text": config.prompt.init_text, "prompt": config.prompt.init_prompt}
        token_ids = initializers.ids_of(self.backbone.vocabulary_VH, self.start_PH)
        return SoftPrompt(
            encoder.prompt_PH if encoder.reads_text else encoder(),
            self.task,
            self.backbone.name,
            self.backbone.fingerprint,
            revision=config.model.revision,
            task_type=self.backbone.task_type,
            weights=encoder.state_dict() if encoder.reads_text else {},
            encoder={"name": config.prompt.encoder, "hidden_size": config.prompt.hidden_size},
            init={**init, "token_ids": token_ids},
            training={
                "steps": progress.step,
                "best_step": progress.best_step or progress.step,
                "seconds": round(progress.seconds, 1),
                "data": {split: getattr(config.data, split) for split in self.examples},
                "rows": len(self.examples["train"]),
                "rows_cut": num_cut(self.examples["train"]),
                "trainable_parameters": sum(p.numel() for p in self.encoder.parameters()),
                "dtype": str(self.backbone.dtype).removeprefix("torch."),
                "quantization": config.model.quantization,
                "seed": self.settings.seed,
                "learning_rate": self.settings.learning_rate,
            },
            results=results,
        )
