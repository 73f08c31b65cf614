"""`PromptedLM`: a frozen model with named soft prompts that classifies, scores and generates.

Knows nothing of training or of files other than saved prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ptuning.backbone import Backbone
from ptuning.data import Coder, Example, Row, as_row, by_length, collate, warn_of_cut
from ptuning.errors import PromptError
from ptuning.forward import place
from ptuning.objective import answer_scores, label_scores
from ptuning.prompt import SoftPrompt
from ptuning.template import Task, Template

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Classification:
    """A row's label."""

    label: str
    """The most likely label."""
    scores: dict[str, float]
    """Label -> its probability among the labels; they sum to 1."""


class PromptedLM:
    """A frozen language model that answers rows through named soft prompts.

    Args:
        backbone: The frozen model.
        prompts: Name -> prompt.
        allow_other_base: Whether prompts tuned on another base model of the same width are taken.
        batch_size: Rows read at once.
        progress: Whether to show a progress bar on stderr.

    Raises:
        PromptError: When a prompt was made for another base model.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Mapping[str, SoftPrompt],
        allow_other_base: bool = False,
        batch_size: int = 32,
        progress: bool = False,
    ) -> None:
        self.backbone, self.batch_size, self.progress = backbone, batch_size, progress
        self.prompts: dict[str, SoftPrompt] = dict(prompts)
        for prompt in self.prompts.values():
            prompt.require_base(backbone.name, backbone.width, backbone.fingerprint, allow_other_base)

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        prompts: Mapping[str, str | Path | SoftPrompt],
        dtype: str = "auto",
        device: str = "auto",
        allow_other_base: bool = False,
        batch_size: int = 32,
        progress: bool = False,
        trust_remote_code: bool = False,
    ) -> "PromptedLM":
        """Loads a base model and saved prompts.

        Args:
            base: A model directory, or a hub model's name.
            prompts: Name -> a saved prompt's directory, or a prompt.
            dtype: Precision of the base model, as in `Backbone.from_pretrained`.
            device: Where it runs.
            allow_other_base: As above.
            batch_size: As above.
            progress: As above.
            trust_remote_code: Whether code that comes with the model may run.

        A hub model is loaded at the revision that the prompts were tuned on.
        """
        loaded = {
            name: prompt if isinstance(prompt, SoftPrompt) else SoftPrompt.load(prompt)
            for name, prompt in prompts.items()
        }
        revision = next((prompt.revision for prompt in loaded.values() if prompt.base_name == str(base)), None)
        backbone = Backbone.from_pretrained(base, dtype, device, revision, trust_remote_code)
        return cls(backbone, loaded, allow_other_base, batch_size, progress)

    def classify(
        self, rows: Sequence[Mapping[str, Any]], prompt: str | Sequence[str] | None = None
    ) -> list[Classification]:
        """The most likely label of each row, and every label's probability.

        Args:
            rows: The template's columns, one mapping a row.
            prompt: A prompt's name, or one a row; None where only one prompt is held.
        """
        return self._by_prompt(rows, prompt, self._classify)

    def score(self, rows: Sequence[Mapping[str, Any]], prompt: str | Sequence[str] | None = None) -> list[float]:
        """The log-probability of each row's own answer, in nats, summed over the answer's tokens.

        Args:
            rows: The template's and the answer's columns.
            prompt: As in `classify`.
        """
        return self._by_prompt(rows, prompt, self._score, with_answers=True)

    def generate(
        self,
        rows: Sequence[Mapping[str, Any]],
        prompt: str | Sequence[str] | None = None,
        max_new_tokens: int = 50,
        **options: Any,
    ) -> list[str]:
        """Writes an answer to each row.

        Args:
            rows: The template's columns.
            prompt: As in `classify`.
            max_new_tokens: The most tokens an answer may have.
            options: For transformers' own `generate`: do_sample, temperature, num_beams and so on; greedy by default.
        """
        refused = {"num_return_sequences", "return_dict_in_generate", "inputs", "input_ids"} & set(options)
        if refused or max_new_tokens < 1:
            received = f"generate({min(refused)}=…)" if refused else f"max_new_tokens={max_new_tokens}"
            raise PromptError(received, "options that give one text a row, of a token or more", "Leave it out")
        ends = {"pad_token_id": self.backbone.pad_id, "eos_token_id": self.backbone.end_ids}
        settings = {"do_sample": False, "max_length": None, **ends, **options}

        def write(name: str, chosen: list[Row]) -> list[str]:
            return self._generate(name, chosen, max_new_tokens, settings)

        return self._by_prompt(rows, prompt, write)

    def _by_prompt(
        self,
        rows: Sequence[Mapping[str, Any]],
        prompt: str | Sequence[str] | None,
        answer: Callable[[str, list[Row]], list[Answer]],
        with_answers: bool = False,
    ) -> list[Answer]:
        """Answers the rows of each prompt together, and gives them back in their order."""
        names = self._names(len(rows), prompt)
        answers: dict[int, Answer] = {}
        for name in dict.fromkeys(names):
            mine = [i for i, each in enumerate(names) if each == name]
            columns = self.task(name).columns if with_answers else self.columns(name)
            chosen = [as_row(rows[i], f"row {i}", columns) for i in mine]
            answers.update(zip(mine, answer(name, chosen), strict=True))
        return [answers[i] for i in range(len(rows))]

    def _names(self, num_rows: int, prompt: str | Sequence[str] | None) -> list[str]:
        if prompt is None and len(self.prompts) == 1:
            prompt = next(iter(self.prompts))
        names = [prompt] * num_rows if isinstance(prompt, str) else list(prompt or ())
        unknown = [name for name in names if name not in self.prompts]
        if unknown or len(names) != num_rows:
            raise PromptError(
                f"prompt={unknown[0]!r}" if unknown else f"{len(names)} prompt names for {num_rows} rows",
                f"one of {', '.join(self.prompts)}, or one a row",
                "Name a prompt that was loaded",
            )
        return names

    def task(self, name: str) -> Task:
        """The named prompt's task; raises `PromptError` for one that has none."""
        task = self.prompts[name].task
        if task is None:
            raise PromptError(
                f"prompt {name!r} without a task (PEFT does not save one)",
                "a template",
                "Give it one: dataclasses.replace(prompt, task=ptuning.Task(template, ...))",
            )
        return task

    def columns(self, name: str) -> tuple[str, ...]:
        """The columns that the named prompt's template needs."""
        return Template.parse(self.task(name).template).field_names

    def _coder(self, name: str) -> Coder:
        return Coder(self.task(name), self.backbone.tokenizer, self.backbone.max_positions)

    def _in_batches(
        self, examples: Sequence[Example], answer: Callable[[list[Example]], Sequence[Answer]]
    ) -> list[Answer]:
        """Answers examples in batches of similar length, and gives the answers back in their order."""
        warn_of_cut("answering", examples)
        answers: dict[int, Answer] = {}
        with torch.no_grad(), tqdm(total=len(examples), unit="row", disable=not self.progress) as bar:
            for batch in by_length(examples, self.batch_size):
                answers.update(zip(batch, answer([examples[i] for i in batch]), strict=True))
                bar.update(len(batch))
        return [answers[i] for i in range(len(examples))]

    def _embeddings(self, name: str) -> Tensor:
        return self.prompts[name].embeddings_PH.to(self.backbone.device)

    def _classify(self, name: str, rows: list[Row]) -> list[Classification]:
        coder, prompt_PH = self._coder(name), self._embeddings(name)
        if not coder.labels:
            raise PromptError(f"classify with prompt {name!r}, which has no verbalizer", "labels", "Use generate")

        def answer(examples: list[Example]) -> list[Classification]:
            scores_BC = label_scores(self.backbone, prompt_PH, examples, coder.label_ids).softmax(dim=1).tolist()
            named = [dict(zip(coder.labels, scores, strict=True)) for scores in scores_BC]
            return [Classification(max(scores, key=scores.__getitem__), scores) for scores in named]

        return self._in_batches(coder.encode_questions(rows), answer)

    def _score(self, name: str, rows: list[Row]) -> list[float]:
        prompt_PH = self._embeddings(name)

        def answer(examples: list[Example]) -> list[float]:
            scores_B, _ = answer_scores(self.backbone, prompt_PH, collate(examples, self.backbone.pad_id))
            return scores_B.tolist()

        return self._in_batches(self._coder(name).encode(rows), answer)

    def _generate(self, name: str, rows: list[Row], max_new_tokens: int, settings: dict[str, Any]) -> list[str]:
        prompt_PH, tokenizer = self._embeddings(name), self.backbone.tokenizer

        def answer(examples: list[Example]) -> list[str]:
            batch = collate(examples, self.backbone.pad_id, padding_side="left").to(self.backbone.device)
            ids_BN = self.backbone.model.generate(
                inputs_embeds=place(self.backbone, prompt_PH, batch.ids_BT),
                attention_mask=batch.mask_BT,
                max_new_tokens=max_new_tokens,
                **settings,
            )
            return tokenizer.batch_decode(ids_BN, skip_special_tokens=True)

        return self._in_batches(self._coder(name).encode_prompts(rows, max_new_tokens), answer)
