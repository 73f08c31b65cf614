"""The two sides of the benchmark, each in a process of its own: what is measured, and nothing of how it is compared."""

import dataclasses
import gc
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import peft
import torch
from torch import Tensor

import ptuning
from benchmark import cost, limit, profile, shapes
from benchmark.device import Device
from ptuning.data import Example, Row, read_rows
from ptuning.forward import objective
from ptuning.prompts import encoders, initializers
from ptuning.training import backward as gradient
from ptuning.training.graphs import GraphedPass

LABELS = {"negative": " negative", "positive": " positive"}
NEW_TOKENS = 20


@dataclass(frozen=True)
class Case:
    """What both sides are given."""

    base: str
    data: str
    dtype: str
    num_virtual: int
    batch_size: int
    num_text: int | None = None
    """Tokens that every row's text is cut or repeated to; None: as it is."""
    num_layers: int | None = None
    """The model's first layers that are kept; None: all."""
    device: str = "cpu"
    """As torch names it."""
    shape: str | None = None
    """A random model's, one of `shapes.SHAPES`; None: the base itself."""

    @property
    def task(self) -> ptuning.Task:
        """The movie reviews' words."""
        template = f"{{prompt:{self.num_virtual}}}Review: {{text}}\nSentiment:"
        return ptuning.Task(template, verbalizer=LABELS, max_length=None)


class Side(ABC):
    """A loaded model, frozen, and rows; `rows(k)` are the k-th batch's, the same on both sides."""

    package: ClassVar[Path]
    """The folder of the side's own Python."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, Device.of(case.device)
        self.backbone = shapes.backbone(case.base, case.shape, case.dtype, case.device, isinstance(self, Ours))
        if case.num_layers is not None:
            del self.backbone.model.model.layers[case.num_layers :]
            self.backbone.model.config.num_hidden_layers = case.num_layers
        self.coder = self.backbone.coder(case.task)
        self.all_rows = read_rows(case.data, "train", case.task.columns)
        if not self.device.is_gpu:
            self.matmul_flops_per_second()  # every weight has been read from the disk
        gc.collect()
        self.device.note_loaded()
        self._peak_bytes = 0

    def about(self) -> dict[str, Any]:
        """The device, the model's shape, and what the backbone says it can do, which takes a while to find out."""
        config = self.backbone.model.config.get_text_config()
        parameters = sum(each.numel() for each in self.backbone.model.parameters())
        sizes = {name: getattr(config, name, None) for name in (*shapes.SHAPES["1b"], "vocab_size")}
        found = {"device": self.device.about(), "model": {**sizes, "parameters": parameters}}
        capabilities = getattr(self.backbone, "capabilities", None)
        return found if capabilities is None else {**found, "capabilities": capabilities}

    def rows(self, k: int) -> list[Row]:
        """Rows of the k-th batch, drawn at random; a row is in one batch until all rows have been."""
        size, order = self.case.batch_size, self._order
        rows = [self.all_rows[order[i % len(order)]] for i in range(k * size, (k + 1) * size)]
        if self.case.num_text is None:
            return rows
        tokenizer, count = self.backbone.tokenizer, self.case.num_text
        texts = [tokenizer.decode((tokenizer(row.values["text"])["input_ids"] * count)[:count]) for row in rows]
        return [Row({**row.values, "text": text}, row.where) for row, text in zip(rows, texts, strict=True)]

    @cached_property
    def _order(self) -> list[int]:
        return torch.randperm(len(self.all_rows), generator=torch.Generator().manual_seed(0)).tolist()

    def num_useful(self, batches: Sequence[int]) -> int:
        """Real tokens of some batches: no padding, no virtual tokens."""
        return sum(example.num_text for k in batches for example in self.coder.encode(self.rows(k)))

    def matmul_flops_per_second(self) -> float:
        """The machine's own rate, as in `limit`."""
        return limit.matmul_flops_per_second(self.backbone.model, self.device)

    @contextmanager
    def _timed(self, seconds: list[float]) -> Iterator[None]:
        """Adds the seconds that its block takes, until the device is done."""
        self.device.synchronise()
        started = time.perf_counter()
        yield
        self.device.synchronise()
        seconds.append(time.perf_counter() - started)

    def warm(self, method: str, batches: Sequence[int], *arguments: Any) -> None:
        """Brings back weights and code by the same work.

        On a CPU of one text or one token, where not all of the work is needed for that.
        """
        if method == "step_seconds":
            self.step_seconds(batches)
        elif method == "generate_seconds":
            (num_rows,) = arguments
            self.generate(self._texts(batches[0])[:num_rows], NEW_TOKENS if self.device.is_gpu else 1)
        elif self.device.is_gpu:
            self.classify_seconds(batches)
        else:
            self.classify(["a film"])

    def release(self) -> None:
        """Gives memory back to the other side."""
        gc.collect()
        self.device.release()

    def first_step_seconds(self) -> float:
        """The first step of all, on batch 0."""
        return self._steps_seconds([0], notes_memory=True)

    def step_seconds(self, batches: Sequence[int]) -> float:
        """An optimizer step on each of some batches, in all."""
        return self._steps_seconds(batches, notes_memory=self.device.is_gpu)

    def step_bytes(self) -> int:
        """The most memory beside the loaded model: on a CPU of the first step, on a GPU of all steps so far."""
        return self._peak_bytes - self.device.loaded_bytes

    def _steps_seconds(self, batches: Sequence[int], notes_memory: bool) -> float:
        seconds: list[float] = []
        prepared = [self.prepare(self.rows(k)) for k in batches]
        if notes_memory:
            self.device.reset_peak()
        with self._timed(seconds):
            for each in prepared:
                self.step(each)
        if notes_memory:
            self._peak_bytes = max(self._peak_bytes, self.device.peak_bytes())
        return seconds[0]

    def classify_seconds(self, batches: Sequence[int]) -> float:
        """Labels of some batches, from their text, in all."""
        seconds: list[float] = []
        texts = [self._texts(k) for k in batches]
        with self._timed(seconds):
            for each in texts:
                self.classify(each)
        return seconds[0]

    def generate_seconds(self, batches: Sequence[int], num_rows: int) -> tuple[float, float]:
        """To the first token of some batches' first rows, and to the last of NEW_TOKENS: medians."""
        seconds: dict[int, list[float]] = {1: [], NEW_TOKENS: []}
        for texts in [self._texts(k)[:num_rows] for k in batches]:
            for count, taken in seconds.items():
                with self._timed(taken):
                    self.generate(texts, count)
        return statistics.median(seconds[1]), statistics.median(seconds[NEW_TOKENS])

    def profile(self, first: int) -> dict[str, Any]:
        """What a step is made of, of batches from `first` on."""
        batches = range(first, first + profile.num_needed(self.device.is_gpu))
        steps: list[Callable[[], object]] = [partial(self.step, self.prepare(self.rows(k))) for k in batches]
        return profile.profiled(steps, self.package, self.device.synchronise, self.device.is_gpu)

    def _texts(self, k: int) -> list[str]:
        return [row.values["text"] for row in self.rows(k)]

    def _adamw(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    @abstractmethod
    def prepare(self, rows: list[Row]) -> Any:
        """What a training loop has at hand before it times a step: tokens."""

    @abstractmethod
    def step(self, prepared: Any) -> None:
        """Forward, backward, AdamW."""

    @abstractmethod
    def classify(self, texts: list[str]) -> list[str]:
        """Labels."""

    @abstractmethod
    def generate(self, texts: list[str], count: int) -> None:
        """Writes exactly so many tokens."""


class Ours(Side):
    """ptuning: its own MLP encoder, its default forward path."""

    package = Path(ptuning.__file__).parent

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        start_PH = initializers.from_vocabulary(self.backbone.vocabulary_VH, case.num_virtual)
        self.encoder = encoders.MLP(start_PH, hidden_size=self.backbone.width).to(case.device)
        self.optimizer, self.run = self._adamw(self.encoder.parameters()), GraphedPass()

    @cached_property
    def lm(self) -> ptuning.PromptedLM:
        """The model with the untrained prompt, which costs what another costs."""
        about = (self.case.task, self.backbone.name, self.backbone.fingerprint)
        return ptuning.PromptedLM(self.backbone, {"it": ptuning.SoftPrompt(self.encoder().detach(), *about)})

    def prepare(self, rows: list[Row]) -> list[Example]:
        """Token ids."""
        return self.coder.encode(rows)

    def step(self, prepared: list[Example]) -> None:
        """As the trainer makes it."""
        scale, prefix = 1 / len(prepared), self.coder.prefix_ids
        gradient.backward_in_parts(self.backbone, self.encoder(), prepared, scale, prefix=prefix, run=self.run)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss_of(self, prompt_PH: Tensor, k: int) -> float:
        """Mean loss of the k-th batch under a given prompt."""
        with torch.no_grad():
            batch = self.backbone.collate(self.prepare(self.rows(k)))
            return float(objective.loss(self.backbone, prompt_PH.to(self.case.device), batch))

    def classify(self, texts: list[str]) -> list[str]:
        """Labels."""
        return [each.label for each in self.lm.classify([{"text": text} for text in texts])]

    def generate(self, texts: list[str], count: int) -> None:
        """Greedy, exactly so many tokens."""
        self.lm.generate([{"text": text} for text in texts], max_new_tokens=count, min_new_tokens=count)

    def least_flops(self, batches: Sequence[int]) -> int:
        """Operations of a step on each of some batches, as `cost.training_flops` counts them."""
        flops = 0
        for k in batches:
            batch = self.backbone.collate(self.prepare(self.rows(k)))
            rest = [own + 1 - batch.num_prefix_tokens for own in batch.num_unscored]
            flops += cost.training_flops(self.backbone.model, cost.Rows(batch.num_prefix_tokens, rest, len(rest)))
        return flops


class Theirs(Side):
    """PEFT: `PromptEncoderConfig`, MLP, as its documentation trains and uses it."""

    package = Path(peft.__file__).parent

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        config = peft.PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=case.num_virtual,
            encoder_reparameterization_type="MLP",
            encoder_hidden_size=self.backbone.width,
        )
        self.model = peft.get_peft_model(self.backbone.model, config)
        self.optimizer = self._adamw([p for p in self.model.parameters() if p.requires_grad])

    def prepare(self, rows: list[Row]) -> list[Example]:
        """Token ids without the virtual ones, which PEFT puts in front itself."""
        return [dataclasses.replace(each, ids=[i for i in each.ids if i >= 0]) for each in self.coder.encode(rows)]

    def step(self, prepared: list[Example]) -> None:
        """Pads on the right, labels where the answers are."""
        self._loss(prepared).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _loss(self, prepared: list[Example]) -> Tensor:
        batch = self.backbone.collate(prepared).to(self.backbone.device)
        loss: Tensor = self.model(batch.ids_BT, attention_mask=batch.mask_BT, labels=batch.labels_BT).loss
        return loss

    def prompt_and_loss(self, k: int) -> tuple[Tensor, float]:
        """The prompt `[P, H]`, and the k-th batch's mean loss under it."""
        with torch.no_grad():
            prompt_PH = self.model.get_prompt(batch_size=1)[0]
            return prompt_PH.cpu(), float(self._loss(self.prepare(self.rows(k))))

    def classify(self, texts: list[str]) -> list[str]:
        """The likelier label after the last token."""
        inputs = self._tokens(texts, "right")
        with torch.no_grad():
            logits = self.model(**inputs).logits
        last = self.case.num_virtual + inputs["attention_mask"].sum(dim=1) - 1
        label_ids = torch.tensor([ids[0] for ids in self.coder.label_ids], device=logits.device)
        best = logits[torch.arange(len(texts), device=logits.device), last][:, label_ids].argmax(dim=1)
        return [self.coder.labels[i] for i in best.tolist()]

    def generate(self, texts: list[str], count: int) -> None:
        """Greedy, exactly so many tokens."""
        self.model.generate(
            **self._tokens(texts, "left"), max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
        )

    def _tokens(self, texts: list[str], side: str) -> Any:
        words = [f"Review: {text}\nSentiment:" for text in texts]
        return self.backbone.tokenizer(words, padding=True, padding_side=side, return_tensors="pt").to(
            self.backbone.device
        )
