"""How a row is asked and answered: a template, the answer's columns, and the words that stand for labels.

Knows nothing of tensors, models or files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ptuning.data.template import Field, Template
from ptuning.data.tokenizer import RunningText, Stretch
from ptuning.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_PAIRS = 5  # that one message tells


@dataclass(frozen=True)
class Verbalizer:
    """Label <-> the text that stands for it as an answer, of one token or several."""

    texts: Mapping[str, str]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order they were written."""
        return tuple(self.texts)

    def token_ids(self, tokenizer: "PreTrainedTokenizerBase", before: str | None = "") -> list[list[int]]:
        """The token ids of each label's text; raises `ConfigError` when one is another's beginning.

        Args:
            tokenizer: A Hugging Face tokenizer.
            before: The text that the labels follow; "" where it is unknown, None where there is none.
        """
        ids = RunningText(tokenizer).ids([Stretch(text, before) for text in self.texts.values()])
        pairs = [
            f"{self.texts[label]!r} of {label!r} begins {self.texts[other]!r} of {other!r}"
            for label, label_ids in zip(self.labels, ids, strict=True)
            for other, other_ids in zip(self.labels, ids, strict=True)
            if label != other and other_ids[: len(label_ids)] == label_ids
        ]
        if pairs:
            more = f", and {len(pairs) - _MOST_PAIRS} others" if len(pairs) > _MOST_PAIRS else ""
            raise ConfigError(
                f"verbalizer text {', '.join(pairs[:_MOST_PAIRS])}{more}",
                "texts none of which begins another, since the shorter would always win",
                "End every text with the same mark, such as a full stop, or choose other words",
            )
        return ids


@dataclass(frozen=True)
class Task:
    """How a row becomes a question and its answer; saved with every prompt."""

    template: str
    """The text before the answer, e.g. `"{prompt:20}Review: {text}\\nSentiment:"`."""
    answer: str = "{label}"
    """The answer, as columns and words; with a verbalizer, the one column that holds the label."""
    verbalizer: dict[str, str] | None = None
    """Label -> answer text; None: the answer is generated text, closed by an end-of-text token."""
    chat_template: bool = False
    """Whether the text is the user's turn of the model's own chat template."""
    max_length: int | None = None
    """The most tokens a row may have, prompt and answer included; None: as many as the model has positions."""
    cut_column: str | None = None
    """The column that loses text where a row is too long; None: the longest one of the row."""
    cut_side: str = "right"
    """Which end it loses: right or left."""

    def __post_init__(self) -> None:
        names = () if self.cut_column is None else Template.parse(self.template).field_names
        if self.cut_column is not None and self.cut_column not in names:
            known = f"a column of the template: {', '.join(names) or 'none'}"
            raise ConfigError(f"cut_column {self.cut_column!r}", known, "Correct it")
        if self.cut_side not in ("right", "left"):
            raise ConfigError(f"cut_side {self.cut_side!r}", "right or left", "Correct it")
        if Template.parse(self.answer).num_virtual_tokens:
            raise ConfigError(
                f"answer {self.answer!r} has a prompt slot", "slots in the template only", "Move the slot"
            )
        if self.verbalizer is None:
            return
        parts = Template.parse(self.answer).parts
        if len(parts) != 1 or not isinstance(parts[0], Field):
            raise ConfigError(
                f"answer {self.answer!r} with a verbalizer",
                "one column alone, such as {label}",
                "Write the words in the verbalizer",
            )
        if len(self.verbalizer) < 2:
            raise ConfigError(
                f"a verbalizer with labels {list(self.verbalizer)}", "two labels or more", "Add the others"
            )
        empty = [label for label, text in self.verbalizer.items() if not text]
        if empty:
            raise ConfigError(f"verbalizer label {empty[0]!r} with no text", "a text for every label", "Write its text")

    @property
    def num_virtual_tokens(self) -> int:
        """P, the number of virtual tokens in all slots."""
        return Template.parse(self.template).num_virtual_tokens

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row with an answer needs."""
        names = (*Template.parse(self.template).field_names, *Template.parse(self.answer).field_names)
        return tuple(dict.fromkeys(names))

    @property
    def is_classification(self) -> bool:
        """Whether answers are chosen among labels rather than generated."""
        return self.verbalizer is not None

    @property
    def label_column(self) -> str:
        """The column that holds the label; only with a verbalizer."""
        return self.answer_columns[0]

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """The columns that make up the answer."""
        return Template.parse(self.answer).field_names

    def answer_text(self, values: Mapping[str, str]) -> str:
        """A row's own answer as text; with a verbalizer, its label."""
        return "".join(map(str, Template.parse(self.answer).fill(values)))

    def without_prompt(self) -> "Task":
        """The same task without its soft prompt."""
        return replace(self, template=Template.parse(self.template).without_prompt().text)

    def with_texts(self, texts: Sequence[str]) -> "Task":
        """The same task with a text in place of each slot."""
        return replace(self, template=Template.parse(self.template).with_texts(texts).text)
