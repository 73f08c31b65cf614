"""Text with slots and fields -> token ids, and label <-> answer text.

Knows nothing of tensors, models or files. A slot is a run of negative ids: virtual token `i` of a prompt is id
`-(i + 1)`, whatever slot it stands in, so that a row stays one flat list of ids until the forward pass.
"""

import bisect
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ptuning.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SLOT = "prompt"
_CONTENT = "\ue000content\ue001"  # stands for the user's turn while a chat template is applied


@dataclass(frozen=True)
class Literal:
    """Text that is the same in every row."""

    text: str


@dataclass(frozen=True)
class Field:
    """A column whose text is put in its place."""

    name: str


@dataclass(frozen=True)
class Slot:
    """A run of virtual tokens."""

    num_virtual_tokens: int


Part = Literal | Field | Slot


@dataclass(frozen=True)
class Template:
    r"""A parsed template such as `"{prompt:20}Review: {text}\nSentiment:"`.

    `{name}` is a column, `{prompt:N}` a slot of N virtual tokens, `{{` and `}}` literal braces. There may be several
    slots, and they may stand between fields.
    """

    parts: tuple[Part, ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Reads a template; raises `ConfigError` where it is malformed."""
        parts: list[Part] = []
        try:
            for literal, name, spec, conversion in string.Formatter().parse(text):
                if literal:
                    parts.append(Literal(literal))
                if name is not None:
                    parts.append(_placeholder(text, name, spec or "", conversion))
        except ValueError as error:
            raise ConfigError(
                f"template {text!r} ({error})",
                "{field} and {prompt:N} placeholders",
                "Write literal braces as {{ and }}",
            ) from None
        return cls(tuple(parts))

    @property
    def num_virtual_tokens(self) -> int:
        """P, the virtual tokens of all slots together."""
        return sum(part.num_virtual_tokens for part in self.parts if isinstance(part, Slot))

    @property
    def field_names(self) -> tuple[str, ...]:
        """The columns the template needs, each once, in order."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Field)))

    @property
    def is_leading(self) -> bool:
        """Whether all virtual tokens stand before everything else, as a PEFT adapter's must."""
        kinds = [isinstance(part, Slot) for part in self.parts]
        return any(kinds) and kinds == sorted(kinds, reverse=True)

    def require_slot(self) -> "Template":
        """Returns itself; raises `ConfigError` when there is no slot for a soft prompt."""
        if not self.num_virtual_tokens:
            raise ConfigError(
                f"template {self.text!r} has no prompt slot",
                "a slot such as {prompt:20}",
                "Put {prompt:20} in front of it",
            )
        return self

    @property
    def text(self) -> str:
        """The template as it is written; `parse(text)` gives the template back."""
        return "".join(map(_written, self.parts))

    def without_prompt(self) -> "Template":
        """The same words with no soft prompt: the baseline a prompt is compared with."""
        return Template(tuple(part for part in self.parts if not isinstance(part, Slot)))

    def with_texts(self, texts: Sequence[str]) -> "Template":
        """The same with a text in each slot's place."""
        given = iter(texts)
        return Template(tuple(Literal(next(given)) if isinstance(part, Slot) else part for part in self.parts))

    @property
    def slot_sizes(self) -> tuple[int, ...]:
        """The virtual tokens of each slot, in order."""
        return tuple(part.num_virtual_tokens for part in self.parts if isinstance(part, Slot))

    def in_chat(self, tokenizer: "PreTrainedTokenizerBase") -> "Template":
        """The template as the user's turn of the model's own chat template; leading slots stay in front of it all."""
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "chat_template: true with a tokenizer that has no chat template",
                "an instruction-tuned model",
                "Set data.chat_template to false",
            )
        turn = [{"role": "user", "content": _CONTENT}]
        try:
            framed = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
            before, after = framed.split(_CONTENT)
        except Exception as error:  # a chat template is a program of its model's author
            raise ConfigError(
                f"chat_template: true with a chat template that cannot frame one user's turn ({error})",
                "one that writes the turn's text once",
                "Set data.chat_template to false and write the frame in data.template",
            ) from error
        num_leading = next((i for i, part in enumerate(self.parts) if not isinstance(part, Slot)), len(self.parts))
        leading, content = self.parts[:num_leading], self.parts[num_leading:]
        return Template((*leading, Literal(before), *content, Literal(after)))

    def fill(self, values: Mapping[str, str]) -> list[str | int]:
        """Puts a row's values in place: stretches of text, and slot lengths between them."""
        stretches: list[str | int] = []
        for part in self.parts:
            if isinstance(part, Slot):
                stretches.append(part.num_virtual_tokens)
                continue
            text = part.text if isinstance(part, Literal) else values[part.name]
            if stretches and isinstance(stretches[-1], str):
                stretches[-1] += text
            else:
                stretches.append(text)
        return stretches


@dataclass(frozen=True)
class Encoded:
    """A row's token ids: negative ids are virtual tokens."""

    ids: list[int]
    """Everything before the answer."""
    was_cut: bool
    """Whether the text field was shortened to fit."""


class TemplateEncoder:
    """Turns rows into ids with one tokenizer: begin-of-text tokens, slots, and cutting of rows that are too long.

    Args:
        template: What to fill.
        tokenizer: A Hugging Face tokenizer. Its begin-of-text token, if it has one, stands before the first text and
            so after a leading slot: virtual tokens stand before everything, as in PEFT.
        chat: Whether the text becomes the user's turn of the model's chat template, which then brings its own
            begin-of-text token.
        closes: Whether what the tokenizer puts behind a text, an encoder's end-of-text token, closes the row.
    """

    def __init__(
        self, template: Template, tokenizer: "PreTrainedTokenizerBase", chat: bool = False, closes: bool = False
    ) -> None:
        self.template = template.in_chat(tokenizer) if chat else template
        begin, end = frame_ids(tokenizer)
        self._begin = [] if chat else begin
        self._end = end if closes else []
        self._tokenizer = tokenizer
        self._special = special_words(tokenizer)

    def encode(
        self, rows: Sequence[Mapping[str, str]], max_tokens: Sequence[int], where: Callable[[int], str]
    ) -> list[Encoded]:
        """Encodes rows of field values.

        Args:
            rows: Field name -> text, one mapping a row.
            max_tokens: The room each row has, in tokens, virtual tokens included.
            where: Names row `i` in an error.

        Returns:
            One `Encoded` a row. A row with too little room has its longest field, in tokens, cut from the right.
        """
        all_ids = self._ids(rows)
        return [
            Encoded(ids, False) if len(ids) <= room else Encoded(self._cut(row, room, where(i)), True)
            for i, (ids, row, room) in enumerate(zip(all_ids, rows, max_tokens, strict=True))
        ]

    def _ids(self, rows: Sequence[Mapping[str, str]]) -> list[list[int]]:
        names = self.template.field_names
        filled = [self.template.fill({name: self.plain(row[name]) for name in names}) for row in rows]
        texts = [stretch for stretches in filled for stretch in stretches if isinstance(stretch, str)]
        tokenized = iter(text_ids(self._tokenizer, texts))
        return [self._join(stretches, tokenized) for stretches in filled]

    def plain(self, text: str) -> str:
        """A row's text with the words of special tokens broken, so that no row can write one."""
        for word in self._special:
            text = text.replace(word, f"{word[0]} {word[1:]}")
        return text

    def _join(self, stretches: list[str | int], tokenized: Iterator[list[int]]) -> list[int]:
        ids: list[int] = []
        num_placed, begin = 0, self._begin
        for stretch in stretches:
            if isinstance(stretch, int):
                ids += range(-num_placed - 1, -num_placed - stretch - 1, -1)
                num_placed += stretch
            else:
                ids += [*begin, *next(tokenized)]
                begin = []
        return [*ids, *begin, *self._end]

    def _cut(self, row: Mapping[str, str], room: int, where: str) -> list[int]:
        """The most of the row's longest field that fits; by bisection, since text does not split where tokens do."""
        if room < 1:
            raise DataError(
                f"{where} leaves no room for its text: its answer takes all positions",
                f"an answer shorter by at least {1 - room} tokens for the model's positions or data.max_length",
                "Shorten the answer or max_new_tokens, or raise data.max_length",
            )
        names = self.template.field_names
        sizes = map(len, text_ids(self._tokenizer, [row[name] for name in names]))
        _, longest = max(zip(sizes, names, strict=True), key=lambda each: each[0], default=(0, ""))
        text = row.get(longest, "")

        def ids_keeping(num_characters: int) -> list[int]:
            return self._ids([{**row, longest: text[:num_characters]}])[0]

        lengths = range(len(text) + 1)
        num_fitting = bisect.bisect_right(lengths, room, key=lambda kept: len(ids_keeping(kept)))
        if num_fitting == 0:
            raise DataError(
                f"{where} needs {len(ids_keeping(0))} tokens before any of its {longest or 'text'!r}",
                f"at most {room}: what the model's positions or data.max_length leave beside the answer",
                "Shorten the prompt, the template or the other fields, or raise data.max_length",
            )
        return ids_keeping(num_fitting - 1)


@dataclass(frozen=True)
class Verbalizer:
    """Label <-> the text that stands for it as an answer, of one token or several."""

    texts: Mapping[str, str]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order they were written."""
        return tuple(self.texts)

    def token_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
        """The token ids of each label's text; raises `ConfigError` when one is another's beginning."""
        ids = text_ids(tokenizer, list(self.texts.values()))
        for label, label_ids in zip(self.labels, ids, strict=True):
            for other, other_ids in zip(self.labels, ids, strict=True):
                if label != other and other_ids[: len(label_ids)] == label_ids:
                    raise ConfigError(
                        f"verbalizer text {self.texts[label]!r} of {label!r} begins {self.texts[other]!r} of {other!r}",
                        "texts of which none begins another, since the shorter would always win",
                        "Choose other words for one of the two labels",
                    )
        return ids


@dataclass(frozen=True)
class Task:
    """How a row becomes a question and its answer; saved with every prompt."""

    template: str
    """What stands before the answer, e.g. `"{prompt:20}Review: {text}\\nSentiment:"`."""
    answer: str = "{label}"
    """The answer's columns and words; with a verbalizer the one column whose values are looked up there."""
    verbalizer: dict[str, str] | None = None
    """Label -> answer text; without one the answer is generated text and an end-of-text token follows it."""
    chat_template: bool = False
    """Whether the text is the user's turn of the model's own chat template."""
    max_length: int | None = None
    """Tokens a row may have, prompt and answer included; None: as many as the model has positions."""

    def __post_init__(self) -> None:
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
            raise ConfigError(f"verbalizer label {empty[0]!r} with no text", "a text a label", "Write its answer text")

    @property
    def num_virtual_tokens(self) -> int:
        """P, the virtual tokens of all slots together."""
        return Template.parse(self.template).num_virtual_tokens

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that rows with answers need."""
        names = (*Template.parse(self.template).field_names, *Template.parse(self.answer).field_names)
        return tuple(dict.fromkeys(names))

    @property
    def is_classification(self) -> bool:
        """Whether answers are chosen among labels rather than generated."""
        return self.verbalizer is not None

    @property
    def label_column(self) -> str:
        """The column that holds the label; only with a verbalizer."""
        return Template.parse(self.answer).field_names[0]

    def without_prompt(self) -> "Task":
        """The same words with no soft prompt."""
        return replace(self, template=Template.parse(self.template).without_prompt().text)

    def with_texts(self, texts: Sequence[str]) -> "Task":
        """The same with a text in place of each of the template's slots."""
        return replace(self, template=Template.parse(self.template).with_texts(texts).text)


def text_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text by itself, without special tokens."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids


def special_words(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The texts that the tokenizer reads as control tokens, the longest first."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted((word for word in added if len(word) > 1), key=len, reverse=True)


def frame_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text, e.g. `[bos]` and `[]`; nothing for most GPT-2-like ones."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    framed = tokenizer("a").input_ids
    start = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
    return framed[:start], framed[start + len(bare) :]


def _placeholder(template: str, name: str, spec: str, conversion: str | None) -> Part:
    if name == _SLOT and not conversion:
        if spec.isascii() and spec.isdigit() and int(spec) > 0:
            return Slot(int(spec))
        raise ConfigError(
            f"slot {{{name}:{spec}}} in template {template!r}", "{prompt:N} with N at least 1", "Write e.g. {prompt:20}"
        )
    if not name.strip() or spec or conversion:
        raise ConfigError(
            f"placeholder {{{name}}} in template {template!r}",
            "{column} or {prompt:N}",
            "Write literal braces as {{ and }}",
        )
    return Field(name)


def _written(part: Part) -> str:
    match part:
        case Slot(num_virtual_tokens):
            return f"{{{_SLOT}:{num_virtual_tokens}}}"
        case Field(name):
            return f"{{{name}}}"
        case Literal(text):
            return text.replace("{", "{{").replace("}", "}}")
