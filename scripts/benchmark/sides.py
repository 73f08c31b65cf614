"""The two sides of the benchmark, each in a process of its own: what is measured, and nothing of how it is compared."""

import dataclasses
import gc
import time
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

import ptuning
from benchmark import cost
from ptuning.data import Example, Row, read_rows
from ptuning.forward import objective
from ptuning.model.kernels import FastKernels
from ptuning.prompts import encoders, initializers
from ptuning.training import backward as gradient

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

    @property
    def task(self) -> ptuning.Task:
        """The movie reviews' words."""
        template = f"{{prompt:{self.num_virtual}}}Review: {{text}}\nSentiment:"
        return ptuning.Task(template, verbalizer=LABELS, max_length=None)


class Side(ABC):
    """A loaded model, frozen, and rows; `rows(k)` are the k-th batch's, the same on both sides."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case = case
        self.backbone = ptuning.Backbone.from_pretrained(case.base, case.dtype, "cpu")
        if case.num_layers is not None:
            del self.backbone.model.model.layers[case.num_layers :]
            self.backbone.model.config.num_hidden_layers = case.num_layers
        self.coder = self.backbone.coder(case.task)
        self.all_rows = read_rows(case.data, "train", case.task.columns)
        self.matmul_flops_per_second()  # every weight has been read from the disk
        gc.collect()
        self.loaded_bytes = _resident("VmRSS")

    def rows(self, k: int) -> list[Row]:
        """Rows of the k-th batch, drawn at random."""
        drawn = torch.randperm(len(self.all_rows), generator=torch.Generator().manual_seed(k)).tolist()
        rows = [self.all_rows[i] for i in drawn[: self.case.batch_size]]
        if self.case.num_text is None:
            return rows
        tokenizer, count = self.backbone.tokenizer, self.case.num_text
        texts = [tokenizer.decode((tokenizer(row.values["text"])["input_ids"] * count)[:count]) for row in rows]
        return [Row({**row.values, "text": text}, row.where) for row, text in zip(rows, texts, strict=True)]

    def num_useful(self, k: int) -> int:
        """Real tokens of the k-th batch: no padding, no virtual tokens."""
        return sum(example.num_text for example in self.coder.encode(self.rows(k)))

    def matmul_flops_per_second(self) -> float:
        """The rate at which the model's own weights are multiplied with 1,024 tokens, one after the other.

        By torch's own function or by ptuning's, whichever is faster on this machine.
        """
        layers = [each for each in self.backbone.model.model.layers.modules() if isinstance(each, torch.nn.Linear)]
        inputs = {each.in_features: torch.randn(1024, each.in_features, dtype=self.backbone.dtype) for each in layers}
        flops, seconds = sum(2 * 1024 * each.weight.numel() for each in layers), []
        for way in (nullcontext(), FastKernels()):
            started = time.perf_counter()
            with torch.no_grad(), way:
                for each in layers:
                    each(inputs[each.in_features])
            seconds.append(time.perf_counter() - started)
        return flops / min(seconds)

    def warm(self, method: str, *arguments: Any) -> None:
        """Brings back weights and code by the same work, of one text or token where all of it is not needed."""
        if method == "step_seconds":
            self.step_seconds(*arguments)
        elif method == "generate_seconds":
            k, num_rows = arguments
            self.generate([row.values["text"] for row in self.rows(k)[:num_rows]], 1)
        else:
            self.classify(["a film"])

    def step_seconds(self, k: int) -> float:
        """One optimizer step on the k-th batch."""
        rows = self.rows(k)
        prepared, started = self.prepare(rows), time.perf_counter()
        self.step(prepared)
        return time.perf_counter() - started

    def step_bytes(self, k: int) -> int:
        """The most memory that a first step takes beside the loaded model."""
        prepared = self.prepare(self.rows(k))
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.step(prepared)
        return _resident("VmHWM") - self.loaded_bytes

    def classify_seconds(self, k: int) -> float:
        """Labels of the k-th batch, from its text."""
        texts, started = [row.values["text"] for row in self.rows(k)], time.perf_counter()
        self.classify(texts)
        return time.perf_counter() - started

    def generate_seconds(self, k: int, num_rows: int) -> tuple[float, float]:
        """To the first token of the k-th batch's first rows, and to the last of NEW_TOKENS."""
        texts, seconds = [row.values["text"] for row in self.rows(k)[:num_rows]], []
        for count in (1, NEW_TOKENS):
            started = time.perf_counter()
            self.generate(texts, count)
            seconds.append(time.perf_counter() - started)
        return seconds[0], seconds[1]

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

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        start_PH = initializers.from_vocabulary(self.backbone.vocabulary_VH, case.num_virtual)
        self.encoder = encoders.MLP(start_PH, hidden_size=self.backbone.width)
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=1e-3)

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
        gradient.backward_in_parts(self.backbone, self.encoder(), prepared, 1 / len(prepared))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss_of(self, prompt_PH: Tensor, k: int) -> float:
        """Mean loss of the k-th batch under a given prompt."""
        with torch.no_grad():
            batch = self.backbone.collate(self.prepare(self.rows(k)))
            return float(objective.loss(self.backbone, prompt_PH, batch))

    def classify(self, texts: list[str]) -> list[str]:
        """Labels."""
        return [each.label for each in self.lm.classify([{"text": text} for text in texts])]

    def generate(self, texts: list[str], count: int) -> None:
        """Greedy, exactly so many tokens."""
        self.lm.generate([{"text": text} for text in texts], max_new_tokens=count, min_new_tokens=count)

    def least_flops(self, k: int) -> int:
        """Operations of a step on the k-th batch, as `cost.training_flops` counts them."""
        batch = self.backbone.collate(self.prepare(self.rows(k)))
        rest = [own + 1 - batch.num_prefix_tokens for own in batch.num_unscored]
        return cost.training_flops(self.backbone.model, cost.Rows(batch.num_prefix_tokens, rest, len(rest)))


class Theirs(Side):
    """PEFT: `PromptEncoderConfig`, MLP, as its documentation trains and uses it."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        config = peft.PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=case.num_virtual,
            encoder_reparameterization_type="MLP",
            encoder_hidden_size=self.backbone.width,
        )
        self.model = peft.get_peft_model(self.backbone.model, config)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-3)

    def prepare(self, rows: list[Row]) -> list[Example]:
        """Token ids without the virtual ones, which PEFT puts in front itself."""
        return [dataclasses.replace(each, ids=[i for i in each.ids if i >= 0]) for each in self.coder.encode(rows)]

    def step(self, prepared: list[Example]) -> None:
        """Pads on the right, labels where the answers are."""
        self._loss(prepared).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _loss(self, prepared: list[Example]) -> Tensor:
        batch = self.backbone.collate(prepared)
        loss: Tensor = self.model(batch.ids_BT, attention_mask=batch.mask_BT, labels=batch.labels_BT).loss
        return loss

    def prompt_and_loss(self, k: int) -> tuple[Tensor, float]:
        """The prompt `[P, H]`, and the k-th batch's mean loss under it."""
        with torch.no_grad():
            prompt_PH = self.model.get_prompt(batch_size=1)[0]
            return prompt_PH, float(self._loss(self.prepare(self.rows(k))))

    def classify(self, texts: list[str]) -> list[str]:
        """The likelier label after the last token."""
        inputs = self._tokens(texts, "right")
        with torch.no_grad():
            logits = self.model(**inputs).logits
        last = self.case.num_virtual + inputs["attention_mask"].sum(dim=1) - 1
        label_ids = torch.tensor([ids[0] for ids in self.coder.label_ids])
        best = logits[torch.arange(len(texts)), last][:, label_ids].argmax(dim=1)
        return [self.coder.labels[i] for i in best.tolist()]

    def generate(self, texts: list[str], count: int) -> None:
        """Greedy, exactly so many tokens."""
        self.model.generate(
            **self._tokens(texts, "left"), max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
        )

    def _tokens(self, texts: list[str], side: str) -> Any:
        words = [f"Review: {text}\nSentiment:" for text in texts]
        return self.backbone.tokenizer(words, padding=True, padding_side=side, return_tensors="pt")


def _resident(what: str) -> int:
    """Bytes of memory that the process holds (VmRSS), or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))
