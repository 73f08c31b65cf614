"""Ways that change weights: LoRA, the last block, all weights; each through the one training loop.

The rows of a step, the number of steps and the schedule are those of prompt tuning. Knows nothing of files but what it
ships.
"""

import copy
import importlib
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn import functional

from ptuning.comparison.protocol import Fact, Facts, Job, SkippedError, Way, Writer, Writing, require_package
from ptuning.comparison.reading import answer_examples, text_loss, token_losses
from ptuning.comparison.steps import kept_best, steps_of
from ptuning.comparison.storage import Saved, write_own, write_tensors
from ptuning.data import Coder, Example, Row, by_length, with_answer
from ptuning.errors import PromptError
from ptuning.evaluation import RowScores
from ptuning.forward import ReadOptions
from ptuning.inference import write_rows
from ptuning.model import Backbone
from ptuning.training import Loop, PromptSteps, StepWork, accelerator_on, loop_settings

LORA_RANK = 8
_FILE = "weights.safetensors"


class Weights:
    """A causal language model whose own weights, or some more beside them, are trained.

    Args:
        model: The model. It is changed: give one whose weights nobody else needs, but for LoRA, which adds its own.
        kind: `lora`, `last_block` or `all_weights`.
        pad_id: What shorter rows are filled with.
        is_mixed: Whether float32 weights run with autocast to bfloat16.
    """

    def __init__(self, model: Any, kind: str, pad_id: int, is_mixed: bool = False) -> None:
        if kind == "lora":
            peft = importlib.import_module("peft")
            config = peft.LoraConfig(
                r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of transformers, for what PEFT asks it
                model = peft.get_peft_model(model, config)
        elif kind == "last_block":
            model.requires_grad_(False)
            for part in last_parts(model):
                part.requires_grad_(True)
        else:
            model.requires_grad_(True)
        self.model, self._pad_id, self._is_mixed = model, pad_id, is_mixed
        self._device = next(model.parameters()).device
        self.trained = nn.ParameterList(each for each in model.parameters() if each.requires_grad)
        """The parameters that are trained."""

    def named(self) -> dict[str, Tensor]:
        """The parameters that are trained, by name; of tied ones, one."""
        return {name: each for name, each in self.model.named_parameters() if each.requires_grad}

    def loss_sum(self, examples: Sequence[Example]) -> Tensor:
        """Cross-entropy summed over the answers' tokens, in nats."""
        logits_NV, targets_N, _ = self._logits(examples)
        return functional.cross_entropy(logits_NV, targets_N, reduction="sum")

    def add_gradients(self, scale: float, examples: Sequence[Example]) -> Tensor:
        """Adds the gradient of scale x the summed loss; the summed loss."""
        loss = self.loss_sum(examples)
        (loss * scale).backward()
        return loss.detach()

    def text_loss(self, ids: Sequence[Sequence[int]]) -> float:
        """The mean loss of a token of a general text in pieces, in nats."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_mixed):
            return text_loss(self.model, ids)

    @torch.no_grad()
    def score_rows(
        self, examples: Sequence[Example], label_ids: Sequence[Sequence[int]], batch_size: int = 50
    ) -> RowScores:
        """As `ptuning.evaluation.score_rows`."""
        batches = by_length(examples, batch_size)
        parts = [[examples[i] for i in places] for places in batches]
        order_N = torch.tensor([i for places in batches for i in places]).argsort()
        if not label_ids:
            log_probs, correct = zip(*map(self._answers, parts), strict=True)
            return RowScores(torch.cat(log_probs).cpu()[order_N], torch.cat(correct).cpu()[order_N], None)
        labels_NC = torch.cat([self._labels(part, label_ids) for part in parts]).cpu()[order_N]
        own_N = torch.tensor([example.label for example in examples])
        return RowScores(labels_NC.gather(1, own_N[:, None])[:, 0], labels_NC.argmax(1) == own_N, labels_NC)

    def write(self, tokenizer: Any, examples: Sequence[Example], writing: Writing) -> list[str]:
        """The answer behind each row, by transformers' own `generate`; the weights are frozen from then on."""
        own = Backbone.of(self.model, tokenizer)
        prompt, plain = torch.zeros(0, own.width), ReadOptions(path="splice")  # no kernels: they know no adapters
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_mixed):
            return write_rows(own, prompt, examples, writing.max_new_tokens, writing.stop_strings, plain)

    def _labels(self, examples: Sequence[Example], label_ids: Sequence[Sequence[int]]) -> Tensor:
        """Log-probability of every label behind every row, `[B, C]`."""
        if all(len(ids) == 1 for ids in label_ids):
            logits_BV, _, _ = self._logits([with_answer(each, list(label_ids[0])) for each in examples])
            return logits_BV.log_softmax(1)[:, [ids[0] for ids in label_ids]]
        return torch.stack(
            [self._answers([with_answer(each, list(ids)) for each in examples])[0] for ids in label_ids], dim=1
        )

    def _answers(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Log-probability of each row's answer, `[B]`, and whether each of its tokens is the most likely one."""
        logits_NV, targets_N, rows_N = self._logits(examples)
        token_log_probs_N = -functional.cross_entropy(logits_NV, targets_N, reduction="none")
        zeros_B = token_log_probs_N.new_zeros(len(examples))
        num_wrong_B = zeros_B.index_add(0, rows_N, (logits_NV.argmax(1) != targets_N).float())
        return zeros_B.index_add(0, rows_N, token_log_probs_N), num_wrong_B == 0

    def _logits(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits fp32 of the answers' tokens, `[N, V]`, the tokens, and their rows; rows are padded on the left."""
        whole = [[*example.ids, *example.answer_ids] for example in examples]
        most = max(map(len, whole))
        ids_BT = torch.tensor([[self._pad_id] * (most - len(ids)) + ids for ids in whole], device=self._device)
        seen_BT = torch.tensor([[0] * (most - len(ids)) + [1] * len(ids) for ids in whole], device=self._device)
        causal_TT = torch.ones(most, most, dtype=torch.bool, device=self._device).tril()
        itself_TT = torch.eye(most, dtype=torch.bool, device=self._device)  # so that padding sees something: no NaN
        mask_BTT = causal_TT & (seen_BT[:, None].bool() | itself_TT)
        num_kept = 1 + max(len(example.answer_ids) for example in examples)
        kept_K = torch.arange(most - num_kept, most, device=self._device)  # as a number torch copies the head B times
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_mixed):
            logits_BKV = self.model(
                input_ids=ids_BT,
                attention_mask=mask_BTT[:, None],
                position_ids=(seen_BT.cumsum(1) - 1).clamp(min=0),
                logits_to_keep=kept_K,
            ).logits
        places = [
            (b, num_kept - 1 - len(example.answer_ids) + i)
            for b, example in enumerate(examples)
            for i in range(len(example.answer_ids))
        ]
        rows, columns = zip(*places, strict=True)
        targets_N = torch.tensor([i for example in examples for i in example.answer_ids], device=self._device)
        return logits_BKV[list(rows), list(columns)].float(), targets_N, torch.tensor(rows, device=self._device)


def last_parts(model: Any) -> list[nn.Module]:
    """The last block of a model and its final norm.

    Raises:
        SkippedError: For a model whose blocks cannot be found.
    """
    base = model.base_model
    blocks = next((each for each in base.modules() if isinstance(each, nn.ModuleList) and len(each)), None)
    if blocks is None:
        raise SkippedError(f"{type(model).__name__} without a list of blocks", "one", "Leave this way out")
    inside = {id(each) for each in blocks.modules()}
    others = [each for each in base.modules() if id(each) not in inside and not list(each.children())]
    norms = [each for each in others if "norm" in type(each).__name__.lower()]
    return [blocks[-1], *norms[-1:]]


@dataclass
class Trained(Writer):
    """A language model with weights of its own."""

    weights: Weights
    """The model."""
    kind: str
    """Which weights are trained."""
    coder: Coder
    """Turns rows into tokens."""
    backbone: Backbone
    """The base, which keeps its own weights."""
    is_saved: bool = True
    """Whether weights are saved that were changed in place; an adapter must be."""
    num_trained: int = 0
    chosen: Mapping[str, str] = field(default_factory=dict)

    def label_scores(self, rows: Sequence[Row]) -> Tensor:
        """As in `Fitted`."""
        examples = [replace(each, label=0) for each in self.coder.encode_questions(rows)]
        labels_NC = self.weights.score_rows(examples, self.coder.label_ids, batch_size=32).labels_NC
        assert labels_NC is not None
        return labels_NC.float()

    def answers(self, rows: Sequence[Row], writing: Writing) -> list[str]:
        """As in `Writer`."""
        examples = self.coder.encode_prompts(rows, writing.max_new_tokens)
        return self.weights.write(self.backbone.tokenizer, examples, writing)

    def answer_losses(self, rows: Sequence[Row]) -> Tensor:
        """As in `Writer`."""
        examples = answer_examples(self.coder, self.backbone.tokenizer, rows)
        return token_losses(self.weights.score_rows(examples, [], batch_size=32), examples)

    def save(self, directory: Path) -> None:
        """As in `Fitted`; changed weights in the float32 that they were trained in."""
        write_own(directory, {"kind": self.kind.replace("_", "-"), "task": vars(self.coder.task)})
        if self.kind == "lora":
            for config in self.weights.model.peft_config.values():
                config.base_model_name_or_path = self.backbone.name
            self.weights.model.save_pretrained(directory / "adapter", save_embedding_layers=False)
        elif self.is_saved:
            write_tensors(directory / _FILE, self.weights.named())

    @classmethod
    def load(cls, saved: Saved) -> Self:
        """Brings back weights that were changed in place: the base's own in all other places."""
        base, kind = saved.base, saved.own["kind"].replace("-", "_")
        if not (saved.directory / _FILE).exists():
            received = f"{saved.directory}, a way without its weights"
            raise PromptError(received, f"one with {_FILE}", "Compare anew with compare.save_weights: true")
        weights = Weights(whole_copy(base), kind, base.pad_id, base.dtype == torch.bfloat16)
        own = weights.named()
        found = saved.tensors(_FILE, {name: list(each.shape) for name, each in own.items()})
        with torch.no_grad():
            for name, each in own.items():
                each.copy_(found[name])
        weights.model.requires_grad_(False)
        return cls(weights, kind, base.coder(saved.task), base)

    def text_loss(self, ids: Sequence[Sequence[int]]) -> float:
        """As in `Fitted`."""
        return self.weights.text_loss(ids)

    def bytes_to_ship(self, directory: Path) -> int:
        """As in `Fitted`; of weights that are changed in place, in the base's precision, kept or not."""
        if self.kind == "lora":
            return super().bytes_to_ship(directory)
        return self.num_trained * self.backbone.dtype.itemsize


class TrainedWeights(Way):
    """A way that trains weights; the validation rows choose the rate and the step."""

    kind: ClassVar[str]
    """As in `Weights`."""
    rate: ClassVar[float]
    """The learning rate that suits it."""

    def require(self, job: Job) -> None:
        """As in `Way`."""
        if job.backbone.task_type != "CAUSAL_LM":
            raise SkippedError(f"{job.backbone.name}", "a causal model", "Leave this way out")

    @abstractmethod
    def model_of(self, backbone: Backbone) -> Any:
        """The model to train."""

    def fit(self, job: Job) -> Trained:
        """As in `Way`."""
        tried = [self._fit(job, i, rate) for i, rate in enumerate(job.effort.rates(self.rate))]
        return max(tried, key=lambda each: each[0])[1]

    def _fit(self, job: Job, place: int, rate: float) -> tuple[float, Trained]:
        """One training: the score on the validation rows, and the model as it was best."""
        set_seed(job.seed)
        backbone, settings = job.backbone, replace(job.config.train, seed=job.seed)
        coder, accelerator = backbone.coder(job.words), accelerator_on(backbone.device)
        steps = PromptSteps(backbone, coder.encode(job.train), settings, accelerator)
        is_mixed = self.kind != "lora" and backbone.dtype == torch.bfloat16
        weights = Weights(self.model_of(backbone), self.kind, backbone.pad_id, is_mixed)
        trained = Trained(weights, self.kind, coder, backbone, self.kind == "lora" or job.save_weights)
        trained.num_trained = sum(each.numel() for each in weights.trained)

        def work(step: int) -> StepWork:
            examples = steps.examples_of(step)
            return replace(steps(step), add_gradients=lambda _, scale: weights.add_gradients(scale, examples))

        def loop(peak: float, num_steps: int) -> Loop:
            return Loop(weights.trained, work, loop_settings(settings, peak, num_steps), accelerator)

        def validate() -> float:
            return job.score(trained)

        num_steps = steps_of(job, place, steps, loop, validate)
        best, best_step = kept_best(loop(rate, num_steps), job.effort.num_evaluations, validate)
        trained.chosen = {"rate": f"{rate:.2g}", "step": str(best_step)}
        return best, trained


class LoRA(TrainedWeights):
    """Low-rank updates of all linear layers (Hu et al. 2021), by PEFT."""

    name, title = "lora", f"low-rank updates of all linear layers, r={LORA_RANK}"
    kind, rate = "lora", 1e-3
    facts: ClassVar[Facts] = Facts(
        learns=True,
        many_tasks=Fact(True, "each request names its adapter"),
        rows_count_at_once=Fact(False, "train again"),
        readable=Fact(False, "weights"),
        works_in_vllm=Fact(True, "--enable-lora, for the architectures that it knows"),
    )

    def require(self, job: Job) -> None:
        """As in `Way`."""
        super().require(job)
        require_package("peft", "peft")

    def model_of(self, backbone: Backbone) -> Any:
        """The base's own weights, in modules of their own."""
        return backbone.twin().model


class LastBlock(TrainedWeights):
    """The last block and the final norm; the head stays."""

    name, title = "last-block", "the last block and the final norm"
    kind, rate = "last_block", 3e-4
    facts: ClassVar[Facts] = Facts(
        learns=True,
        many_tasks=Fact(False, "each task has a last block of its own"),
        rows_count_at_once=Fact(False, "train again"),
        readable=Fact(False, "weights"),
        works_in_vllm=Fact(True, "an ordinary checkpoint, one server a task"),
    )

    def model_of(self, backbone: Backbone) -> Any:
        """A copy in float32."""
        return whole_copy(backbone)


class AllWeights(TrainedWeights):
    """All weights, in float32; where the base is in bfloat16 they run with autocast to it."""

    name, title = "all-weights", "all weights of the base"
    kind, rate = "all_weights", 5e-5
    facts: ClassVar[Facts] = Facts(
        learns=True,
        many_tasks=Fact(False, "each task has a model of its own"),
        rows_count_at_once=Fact(False, "train again"),
        readable=Fact(False, "weights"),
        works_in_vllm=Fact(True, "an ordinary checkpoint, one server a task"),
    )

    def model_of(self, backbone: Backbone) -> Any:
        """A copy in float32."""
        return whole_copy(backbone)


def whole_copy(backbone: Backbone) -> Any:
    """A copy of the base in float32 that shares nothing with it."""
    return copy.deepcopy(backbone.model).float()
