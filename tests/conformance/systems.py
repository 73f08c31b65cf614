"""The two libraries that the suite can be run against, behind one small interface: ptuning and PEFT."""

import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import peft
import torch
from definition import SEED, Line
from families import NUM_POSITIONS, tiny_backbone, tiny_model
from torch import Tensor
from transformers import CONFIG_MAPPING

from ptuning.data.batches import padded as padded_rows
from ptuning.data.examples import Example
from ptuning.data.task import Task
from ptuning.forward import objective
from ptuning.forward.paths import label_logits
from ptuning.inference.prompt_library import prompt_of_rows
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.model.quantization import quantize
from ptuning.prompts.soft_prompt import SoftPrompt

END, PAD = 1, 2


class System(ABC):
    """A library that prompts the tiny model of a family.

    Args:
        family: The model's family.
        is_quantized: Whether its weights are int8.
        changes: To the model, as in `tiny_backbone`.
    """

    name: str

    def __init__(self, family: str, is_quantized: bool = False, **changes: Any) -> None:
        if hasattr(CONFIG_MAPPING[family](), "max_position_embeddings"):
            changes = {"max_position_embeddings": NUM_POSITIONS, **changes}
        self.backbone = tiny_backbone(family, **changes)
        self.model, self.tokenizer = self.backbone.model, self.backbone.tokenizer
        self.plain = tiny_model(family, **changes)[0].eval()  # what the definition is computed with: ours never saw it
        if is_quantized:
            quantize(self.model, "int8")

    @property
    def task_type(self) -> str:
        return self.backbone.task_type

    def random_prompt(self, num_virtual_tokens: int, seed: int = 0) -> Tensor:
        """`[P, H]`, twice as long as the vocabulary's embeddings, so that it is felt."""
        drawn = torch.randn(num_virtual_tokens, self.backbone.width, generator=torch.Generator().manual_seed(seed))
        return drawn * self.backbone.vocabulary_VH.std() * 2

    @abstractmethod
    def logits(self, prompt_PH: Tensor, rows: list[Line], padding_side: str = "right") -> Tensor:
        """Logits `[N, V]` that predict the answers' tokens, the rows in one batch."""

    @abstractmethod
    def train_step(self, prompt_PH: Tensor, rows: list[Line], is_checkpointed: bool = False) -> tuple[Tensor, Tensor]:
        """The loss as training computes it, and the gradient of the prompt `[P, H]`."""

    @abstractmethod
    def generate(self, prompt_PH: Tensor, texts: list[str], num_tokens: int, **options: Any) -> list[list[int]]:
        """What is written after each text from `SEED` on, the end-of-text token left out; the texts in one batch."""

    @abstractmethod
    def mixed(self, prompts: list[Tensor], choice: list[int], rows: list[Line]) -> Tensor:
        """Logits like `logits`, where each row of the one batch has its own prompt."""

    @abstractmethod
    def second_turn(self, prompt_PH: Tensor, first: str, second: str, num_tokens: int) -> tuple[list[int], list[int]]:
        """A conversation from its cache: all ids before the second answer, and the second answer."""

    @abstractmethod
    def disabled(self, prompt_PH: Tensor, rows: list[Line]) -> Tensor:
        """Logits with the prompt switched off, after it has been used."""

    @abstractmethod
    def save(self, prompt_PH: Tensor, directory: Path) -> None:
        """Writes a prompt."""

    @abstractmethod
    def load(self, directory: Path) -> Tensor:
        """Reads a prompt that either library wrote."""


class Ours(System):
    """This library, through what a program would call."""

    name = "ptuning"

    def __init__(self, family: str, is_quantized: bool = False, **changes: Any) -> None:
        super().__init__(family, is_quantized, **changes)
        # Answers as their ids: bytes that are no text would all look the same.
        self.tokenizer.decode = lambda ids, skip_special_tokens: " ".join(map(str, ids))

    def logits(self, prompt_PH: Tensor, rows: list[Line], padding_side: str = "right") -> Tensor:
        batch = self.backbone.collate(self._examples(prompt_PH, rows), padding_side)
        return label_logits(self.backbone, prompt_PH, batch)

    def train_step(self, prompt_PH: Tensor, rows: list[Line], is_checkpointed: bool = False) -> tuple[Tensor, Tensor]:
        prompt_PH = prompt_PH.clone().requires_grad_()
        backbone = self.backbone.with_checkpointing() if is_checkpointed else self.backbone
        loss = objective.loss(backbone, prompt_PH, backbone.collate(self._examples(prompt_PH, rows)))
        loss.backward()
        assert prompt_PH.grad is not None
        return loss.detach(), prompt_PH.grad

    def generate(self, prompt_PH: Tensor, texts: list[str], num_tokens: int, **options: Any) -> list[list[int]]:
        lm = PromptedLM(self.backbone, {"p": self.soft_prompt(prompt_PH)})
        torch.manual_seed(SEED)
        answers = lm.generate([{"text": text} for text in texts], max_new_tokens=num_tokens, **options)
        return [list(map(int, answer.split())) for answer in answers]

    def mixed(self, prompts: list[Tensor], choice: list[int], rows: list[Line]) -> Tensor:
        lm = PromptedLM(self.backbone, {f"p{k}": self.soft_prompt(each) for k, each in enumerate(prompts)})
        examples = [self._examples(prompts[k], [row])[0] for k, row in zip(choice, rows, strict=True)]
        return label_logits(
            self.backbone, prompt_of_rows([lm.prompts.ready(f"p{k}") for k in choice]), self.backbone.collate(examples)
        )

    def second_turn(self, prompt_PH: Tensor, first: str, second: str, num_tokens: int) -> tuple[list[int], list[int]]:
        conversation = PromptedLM(self.backbone, {"p": self.soft_prompt(prompt_PH)}).conversation()
        conversation.send(first, max_new_tokens=num_tokens)
        before = [i for i in conversation.ids if i >= 0] + self.tokenizer(second, add_special_tokens=False).input_ids
        answer = conversation.send(second, max_new_tokens=num_tokens)
        return before, list(map(int, answer.split()))

    def disabled(self, prompt_PH: Tensor, rows: list[Line]) -> Tensor:
        prompt = self.soft_prompt(prompt_PH)
        lm = PromptedLM(self.backbone, {"p": prompt, "off": prompt.disabled()})
        lm.generate([{"text": "the film"}], "p", max_new_tokens=3)
        examples = self._examples(prompt_PH[:0], rows)
        return label_logits(
            self.backbone, prompt_of_rows([lm.prompts.ready("off")] * len(rows)), self.backbone.collate(examples)
        )

    def save(self, prompt_PH: Tensor, directory: Path) -> None:
        self.soft_prompt(prompt_PH).save(directory)

    def load(self, directory: Path) -> Tensor:
        return SoftPrompt.load(directory).embeddings_PH

    def soft_prompt(self, prompt_PH: Tensor) -> SoftPrompt:
        task = Task(f"{{prompt:{len(prompt_PH)}}}{{text}}", "{answer}")
        fingerprint = self.backbone.fingerprint
        return SoftPrompt(prompt_PH, task, self.backbone.name, fingerprint, task_type=self.task_type)

    def _examples(self, prompt_PH: Tensor, rows: list[Line]) -> list[Example]:
        slot = range(-1, -len(prompt_PH) - 1, -1)
        return [Example([*slot, *row.ids], list(row.answer_ids)) for row in rows]


class Peft(System):
    """PEFT's prompt tuning, used as its documentation shows."""

    name = "PEFT"

    def logits(self, prompt_PH: Tensor, rows: list[Line], padding_side: str = "right") -> Tensor:
        return self._logits(self._prompted(prompt_PH), len(prompt_PH), rows, padding_side)

    def train_step(self, prompt_PH: Tensor, rows: list[Line], is_checkpointed: bool = False) -> tuple[Tensor, Tensor]:
        model = self._prompted(prompt_PH, is_trainable=True)
        if is_checkpointed:
            model.base_model.gradient_checkpointing_enable()
        model.train()
        inputs = self._inputs(rows, "right")
        loss = model(**inputs).loss
        loss.backward()
        weight = model.prompt_encoder["default"].embedding.weight
        return loss.detach(), weight.grad

    def generate(self, prompt_PH: Tensor, texts: list[str], num_tokens: int, **options: Any) -> list[list[int]]:
        side = "right" if self.model.config.is_encoder_decoder else "left"
        inputs = self.tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        model, settings = self._prompted(prompt_PH), {"do_sample": False, "pad_token_id": PAD, "eos_token_id": END}
        torch.manual_seed(SEED)
        written_BN = model.generate(**inputs, max_new_tokens=num_tokens, **{**settings, **options})
        start = 1 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        rows = [row[start:] for row in written_BN.tolist()]
        return [row[: row.index(END)] if END in row else row for row in rows]

    def mixed(self, prompts: list[Tensor], choice: list[int], rows: list[Line]) -> Tensor:
        model = self._prompted(prompts[0])
        for k, prompt_PH in enumerate(prompts):
            model.add_adapter(f"p{k}", self._config(len(prompt_PH)))
            with torch.no_grad():
                model.prompt_encoder[f"p{k}"].embedding.weight.copy_(prompt_PH)
        return self._logits(model, len(prompts[0]), rows, "right", adapter_names=[f"p{k}" for k in choice])

    def second_turn(self, prompt_PH: Tensor, first: str, second: str, num_tokens: int) -> tuple[list[int], list[int]]:
        model, options = (
            self._prompted(prompt_PH),
            {"do_sample": False, "max_new_tokens": num_tokens, "pad_token_id": PAD},
        )
        ids_1T = torch.tensor([self.tokenizer(first).input_ids])
        mask = torch.ones_like(ids_1T)
        output = model.generate(input_ids=ids_1T, attention_mask=mask, return_dict_in_generate=True, **options)
        new = self.tokenizer(second, add_special_tokens=False).input_ids
        ids_1T = torch.cat([output.sequences, torch.tensor([new])], dim=1)
        mask = torch.ones_like(ids_1T)
        cache = output.past_key_values
        again = model.generate(input_ids=ids_1T, attention_mask=mask, past_key_values=cache, **options)
        answer = again[0, ids_1T.shape[1] :].tolist()
        return ids_1T[0].tolist(), answer[: answer.index(END)] if END in answer else answer

    def disabled(self, prompt_PH: Tensor, rows: list[Line]) -> Tensor:
        model = self._prompted(prompt_PH)
        ids_1T = torch.tensor([[5, 6]])
        options = {"attention_mask": torch.ones_like(ids_1T), "max_new_tokens": 3, "pad_token_id": PAD}
        model.generate(input_ids=ids_1T, **options)
        with model.disable_adapter():
            return self._logits(model, 0, rows, "right")

    def save(self, prompt_PH: Tensor, directory: Path) -> None:
        self._prompted(prompt_PH).save_pretrained(directory)

    def load(self, directory: Path) -> Tensor:
        model = peft.PeftModel.from_pretrained(self.model, directory)
        return model.prompt_encoder["default"].embedding.weight.detach()

    def _config(self, num_virtual_tokens: int) -> Any:
        shape = {"num_transformer_submodules": 1, "token_dim": self.backbone.width}
        shape["num_attention_heads"] = 1  # not used by prompt tuning, but asked for
        return peft.PromptTuningConfig(task_type=self.task_type, num_virtual_tokens=num_virtual_tokens, **shape)

    def _prompted(self, prompt_PH: Tensor, is_trainable: bool = False) -> Any:
        model = peft.get_peft_model(self.model, self._config(len(prompt_PH))).eval()
        weight = model.prompt_encoder["default"].embedding.weight
        with torch.no_grad():
            weight.copy_(prompt_PH)
        weight.requires_grad_(is_trainable)
        return model

    def _inputs(self, rows: list[Line], padding_side: str) -> dict[str, Tensor]:
        is_pair = self.model.config.is_encoder_decoder
        texts = [list(row.ids) if is_pair else [*row.ids, *row.answer_ids] for row in rows]
        labels = [list(row.answer_ids) if is_pair else [*[-100] * len(row.ids), *row.answer_ids] for row in rows]
        padded = self.tokenizer.pad({"input_ids": texts}, padding_side=padding_side, return_tensors="pt")
        labels_BT, _ = padded_rows(labels, -100, "right" if is_pair else padding_side)
        return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"], "labels": labels_BT}

    def _logits(self, model: Any, num_virtual_tokens: int, rows: list[Line], side: str, **options: Any) -> Tensor:
        inputs = self._inputs(rows, side)
        logits_BTV = model(**inputs, **options).logits
        if self.model.config.is_encoder_decoder:
            return logits_BTV[inputs["labels"] != -100]
        logits_BTV = logits_BTV[:, num_virtual_tokens:]
        return logits_BTV[:, :-1][inputs["labels"][:, 1:] != -100]


def temporary_directory() -> Any:
    """A directory that is removed behind its use."""
    return tempfile.TemporaryDirectory()
