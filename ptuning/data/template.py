"""Templates: text with slots for virtual tokens and fields for a row's columns.

Knows nothing of tokens, tensors, models or files.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptuning.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_SLOT = "prompt"


_CONTENT = "\ue000content\ue001"  # the user's turn while a chat template is applied


def can_be_field(name: str) -> bool:
    """Whether a template can hold a column of this name."""
    return bool(name.strip()) and name != _SLOT and not any(character in name for character in "{}:!")


@dataclass(frozen=True)
class Literal:
    """Text that is the same in every row."""

    text: str


@dataclass(frozen=True)
class Field:
    """A column, replaced by its text in each row."""

    name: str


@dataclass(frozen=True)
class Slot:
    """A run of virtual tokens."""

    num_virtual_tokens: int


Part = Literal | Field | Slot


@dataclass(frozen=True)
class Template:
    r"""A parsed template such as `"{prompt:20}Review: {text}\nSentiment:"`.

    `{name}` is a column, `{prompt:N}` a slot of N virtual tokens, `{{` and `}}` are literal braces. There may be
    several slots, also between fields.
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
        """P, the number of virtual tokens in all slots."""
        return sum(part.num_virtual_tokens for part in self.parts if isinstance(part, Slot))

    @property
    def field_names(self) -> tuple[str, ...]:
        """The columns the template needs, each once, in order."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, Field)))

    @property
    def is_leading(self) -> bool:
        """Whether all virtual tokens come before everything else, as a PEFT adapter's must."""
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
    def ending(self) -> str | None:
        """The words that every row ends with, without slots: "" after a column, None where the template has no text."""
        ending, texts = "", [part for part in self.parts if not isinstance(part, Slot)]
        for part in reversed(texts):
            if isinstance(part, Field):
                break
            ending = part.text + ending
        return ending if texts else None

    @property
    def text(self) -> str:
        """The template as it is written; `parse(text)` gives the template back."""
        return "".join(map(_written, self.parts))

    def without_prompt(self) -> "Template":
        """The same template without its slots: the baseline that a prompt is compared with."""
        return Template(tuple(part for part in self.parts if not isinstance(part, Slot)))

    def with_texts(self, texts: Sequence[str]) -> "Template":
        """The same template with a text in place of each slot."""
        given = iter(texts)
        return Template(tuple(Literal(next(given)) if isinstance(part, Slot) else part for part in self.parts))

    @property
    def slot_sizes(self) -> tuple[int, ...]:
        """The virtual tokens of each slot, in order."""
        return tuple(part.num_virtual_tokens for part in self.parts if isinstance(part, Slot))

    def in_chat(self, tokenizer: "PreTrainedTokenizerBase") -> "Template":
        """The template as the user's turn in the model's chat template; leading slots stay in front of everything."""
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
        except Exception as error:  # a chat template is a program written by the model's author
            raise ConfigError(
                f"chat_template: true with a chat template that cannot frame one user's turn ({error})",
                "one that writes the turn's text once",
                "Set data.chat_template to false and write the frame in data.template",
            ) from error
        num_leading = next((i for i, part in enumerate(self.parts) if not isinstance(part, Slot)), len(self.parts))
        leading, content = self.parts[:num_leading], self.parts[num_leading:]
        return Template((*leading, Literal(before), *content, Literal(after)))

    def fill(self, values: Mapping[str, str]) -> list[str | int]:
        """Puts a row's values in place: stretches of text, with the sizes of slots between them."""
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
