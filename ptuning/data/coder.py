"""Turns rows of a task into examples with one tokenizer.

Knows nothing of tensors, models or files. A slot becomes a run of negative ids: virtual token `i` of a prompt is id
`-(i + 1)`, whatever its slot, so that a row stays one flat list of ids until the forward pass.
"""

import bisect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ptuning.data.examples import Example, common_beginning
from ptuning.data.readers import Row, require_columns
from ptuning.data.task import Task, Verbalizer
from ptuning.data.template import Literal, Slot, Template
from ptuning.data.tokenizer import RunningText, Stretch, frame_ids, special_words, text_ids
from ptuning.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHARACTERS_PER_TOKEN, _MARGIN = 8, 64  # more than most tokens have; tokens that a cut word may have
# Beginnings of texts, so different that no text before them all joins with each of them into one token.
_PROBES = ("", "a", "The", " a", "1", "é", "(", '"', "\n", "-")


@dataclass(frozen=True)
class Encoded:
    """A row's token ids: negative ids are virtual tokens."""

    ids: list[int]
    """Everything before the answer."""
    was_cut: bool
    """Whether the text field was shortened to fit."""


class TemplateEncoder:
    """Turns rows into ids with one tokenizer: adds begin-of-text tokens and slots, and cuts rows that are too long.

    Args:
        template: The template to fill.
        tokenizer: A Hugging Face tokenizer. Its begin-of-text token, if it has one, comes right before the first text,
            so after a leading slot: virtual tokens come before everything, as in PEFT.
        chat: Whether the text becomes the user's turn in the model's chat template, which writes its own
            begin-of-text token.
        closes: Whether the tokens that the tokenizer adds after a text, an encoder's end-of-text token, close the row.
        cut_column: The field that is cut where a row is too long; None: its longest, in tokens.
        cut_side: Which end the field loses: right or left.
    """

    def __init__(
        self,
        template: Template,
        tokenizer: "PreTrainedTokenizerBase",
        chat: bool = False,
        closes: bool = False,
        cut_column: str | None = None,
        cut_side: str = "right",
    ) -> None:
        self.template = template.in_chat(tokenizer) if chat else template
        begin, end = frame_ids(tokenizer)
        self._begin = [] if chat else begin
        self._end = end if closes else []
        self._tokenizer, self._cut_column, self._cuts_left = tokenizer, cut_column, cut_side == "left"
        self._running = RunningText(tokenizer)
        self._special = special_words(tokenizer)

    def encode(
        self, rows: Sequence[Mapping[str, str]], max_tokens: Sequence[int], where: Callable[[int], str]
    ) -> list[Encoded]:
        """Encodes rows of field values.

        Args:
            rows: Field name -> text, one mapping per row.
            max_tokens: The most tokens each row may have, virtual tokens included.
            where: Names row `i` in an error.

        Returns:
            One `Encoded` per row. A row that is too long has one field cut.
        """
        begun = [self._begun(row, _most_characters(room)) for row, room in zip(rows, max_tokens, strict=True)]
        all_ids = self._ids(begun)
        return [
            Encoded(ids, False) if own is row and len(ids) <= room else self._fitted(row, own, ids, room, where(i))
            for i, (row, own, ids, room) in enumerate(zip(rows, begun, all_ids, max_tokens, strict=True))
        ]

    def _begun(self, row: Mapping[str, str], most_characters: int) -> Mapping[str, str]:
        """The row with the beginning of its fields, or with their end; the row itself where none is longer."""
        longer = [name for name in self.template.field_names if len(row[name]) > most_characters]
        return {**row, **{name: self._kept(row[name], most_characters) for name in longer}} if longer else row

    def _kept(self, text: str, num_characters: int) -> str:
        return text[max(0, len(text) - num_characters) :] if self._cuts_left else text[:num_characters]

    def _fitted(
        self, row: Mapping[str, str], begun: Mapping[str, str], ids: list[int], room: int, where: str
    ) -> Encoded:
        """A row that does not fit, or of which only a part was tokenized, because tokenizing all of it takes long."""
        most = _most_characters(room)
        while len(ids) <= room + _MARGIN and begun is not row:  # a word that is cut has more tokens than a whole one
            most *= 4
            begun = self._begun(row, most)
            ids = self._ids([begun])[0]
        return Encoded(ids, False) if len(ids) <= room else Encoded(self._cut(begun, room, where), True)

    def _ids(self, rows: Sequence[Mapping[str, str]]) -> list[list[int]]:
        names = self.template.field_names
        filled = [self.template.fill({name: self.plain(row[name]) for name in names}) for row in rows]
        tokenized = iter(self._running.ids([stretch for parts in filled for stretch in _stretches(parts)]))
        return [self._join(parts, tokenized) for parts in filled]

    def plain(self, text: str) -> str:
        """A row's text with a space inside each special token's word, so that no row can write a special token."""
        for word in self._special:
            text = text.replace(word, f"{word[0]} {word[1:]}")
        return text

    def with_texts(self, texts: Sequence[str], space: str = "") -> Template:
        """The template with a text in place of each slot, and with the begin-of-text and end-of-text tokens as text.

        Args:
            texts: A text for each slot.
            space: What stands between the begin-of-text token and the first text.
        """
        begin, end = ("".join(self._tokenizer.convert_ids_to_tokens(ids)) for ids in (self._begin, self._end))
        parts = self.template.parts
        first = next((i for i, part in enumerate(parts) if not isinstance(part, Slot)), len(parts))
        written = (*parts[:first], Literal(begin + space), *parts[first:], Literal(end))
        return Template(written).with_texts(texts)

    def _join(self, parts: list[str | int], tokenized: Iterator[list[int]]) -> list[int]:
        ids: list[int] = []
        num_placed, begin = 0, self._begin
        for part in parts:
            if isinstance(part, int):
                ids += range(-num_placed - 1, -num_placed - part - 1, -1)
                num_placed += part
            else:
                ids += [*begin, *next(tokenized)]
                begin = []
        return [*ids, *begin, *self._end]

    def _cut(self, row: Mapping[str, str], room: int, where: str) -> list[int]:
        """Keeps as much of the field as fits; by bisection, since a cut changes the tokens beside it."""
        if room < 1:
            raise DataError(
                f"{where} leaves no room for its text: its answer takes all positions",
                f"an answer shorter by at least {1 - room} tokens for the model's positions or data.max_length",
                "Shorten the answer or max_new_tokens, or raise data.max_length",
            )
        cut = self._cut_column or self._longest(row)
        text = row.get(cut, "")

        def ids_keeping(num_characters: int) -> list[int]:
            return self._ids([{**row, cut: self._kept(text, num_characters)}])[0]

        lengths = range(len(text) + 1)
        num_fitting = bisect.bisect_right(lengths, room, key=lambda kept: len(ids_keeping(kept)))
        if num_fitting == 0:
            raise DataError(
                f"{where} needs {len(ids_keeping(0))} tokens before any of its {cut or 'text'!r}",
                f"at most {room}: what the model's positions or data.max_length leave beside the answer",
                "Shorten the prompt, the template or the other fields, or raise data.max_length",
            )
        return ids_keeping(num_fitting - 1)

    def _longest(self, row: Mapping[str, str]) -> str:
        """The field with the most tokens; "" where the template has none."""
        names = self.template.field_names
        sizes = map(len, text_ids(self._tokenizer, [row[name] for name in names]))
        return max(zip(sizes, names, strict=True), key=lambda each: each[0], default=(0, ""))[1]


def _most_characters(room: int) -> int:
    """As many characters as more tokens than fit are likely to have."""
    return _CHARACTERS_PER_TOKEN * (max(room, 1) + _MARGIN)


def _stretches(parts: list[str | int]) -> Iterator[Stretch]:
    """The stretches of a filled template, each with all the row's text before it."""
    before = ""
    for part in parts:
        if isinstance(part, str):
            yield Stretch(part, before or None)
            before += part


class Coder:
    """Turns rows of a task into examples with one tokenizer.

    Args:
        task: The template, the answer and the verbalizer.
        tokenizer: The base model's tokenizer.
        max_positions: Positions the model has; None for no limit.
        closes: Whether the question is for an encoder: the tokenizer's end-of-text token closes it, and the answer is
            for a decoder and has positions of its own.
    """

    def __init__(self, task: Task, tokenizer: Any, max_positions: int | None = None, closes: bool = False) -> None:
        self.task = task
        self._tokenizer = tokenizer
        template, cut = Template.parse(task.template), (task.cut_column, task.cut_side)
        self._encoder = TemplateEncoder(template, tokenizer, task.chat_template, closes, *cut)
        self._answer = Template.parse(task.answer)
        self._running = RunningText(tokenizer)
        self._before_answer = None if closes else self._encoder.template.ending  # a decoder's answer stands alone
        self.labels = tuple(task.verbalizer or ())
        verbalizer = Verbalizer(task.verbalizer or {})
        self.label_ids = verbalizer.token_ids(tokenizer, self._before_answer)
        self._max_positions = sys.maxsize if max_positions is None else max_positions
        self._has_apart = closes

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """Encodes rows with their answers.

        Raises:
            DataError: Naming the row, for a missing column, a label that the verbalizer lacks or a row that cannot fit
                the model's positions.
        """
        answers = self._answers(rows)
        reserved = [self.longest_label or len(answer) for answer in answers]  # a label must not decide what is cut
        for row, num_tokens in zip(rows, reserved, strict=True):
            if num_tokens > self._max_positions:
                raise DataError(
                    f"{row.where}: an answer of {num_tokens} tokens", f"at most {self._max_positions}", "Shorten it"
                )
        examples = self._questions(rows, [self._room_beside(num_tokens) for num_tokens in reserved])
        labels = [self._label(row) if self.labels else None for row in rows]
        return [
            Example(example.ids, answer, label, example.was_cut)
            for example, answer, label in zip(examples, answers, labels, strict=True)
        ]

    def encode_questions(self, rows: Sequence[Row]) -> list[Example]:
        """Encodes rows without answers, leaving room for the longest label; raises like `encode`."""
        return self._questions(rows, [self._room_beside(self.longest_label)] * len(rows))

    def encode_prompts(self, rows: Sequence[Row], max_new_tokens: int) -> list[Example]:
        """Encodes rows to be continued; only the model's positions limit the new tokens. Raises like `encode`."""
        room = min(self.task.max_length or sys.maxsize, self._positions_beside(max_new_tokens))
        return self._questions(rows, [room] * len(rows))

    def next_ids(self, text: str) -> list[int]:
        """Token ids of text that goes on behind a row and its answer."""
        return self._running.ids([Stretch(text, "")])[0]

    def _room_beside(self, num_answer_tokens: int) -> int:
        """The most tokens that a question may have beside an answer."""
        length = self.task.max_length or sys.maxsize
        return min(length - num_answer_tokens, self._positions_beside(num_answer_tokens))

    def _positions_beside(self, num_answer_tokens: int) -> int:
        return self._max_positions - (0 if self._has_apart else num_answer_tokens)

    @cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """The virtual tokens and words that every row begins with; always less than a whole row."""
        rows = [Row(dict.fromkeys(self.columns, text), "a row") for text in _PROBES]
        ids = [each.ids for each in self._questions(rows, [sys.maxsize] * len(rows))]
        return tuple(common_beginning(ids)[: min(map(len, ids)) - 1])

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template needs."""
        return self._encoder.template.field_names

    def plain(self, text: str) -> str:
        """The text without any special token's word."""
        return self._encoder.plain(text)

    def with_texts(self, texts: Sequence[str], space: str = "") -> Template:
        """What other programs tokenize without adding special tokens; arguments as in `TemplateEncoder.with_texts`."""
        return self._encoder.with_texts(texts, space)

    @property
    def longest_label(self) -> int:
        """The number of tokens of the longest label's text; 0 without a verbalizer."""
        return max(map(len, self.label_ids), default=0)

    def _questions(self, rows: Sequence[Row], rooms: Sequence[int]) -> list[Example]:
        for row in rows:
            require_columns(row, self.columns)
        encoded = self._encoder.encode([row.values for row in rows], rooms, lambda i: rows[i].where)
        return [Example(each.ids, [], None, each.was_cut) for each in encoded]

    def _answers(self, rows: Sequence[Row]) -> list[list[int]]:
        """The token ids of the rows' answers."""
        names = self._answer.field_names
        for row in rows:
            require_columns(row, names)
        if self.labels:
            return [self.label_ids[self._label(row)] for row in rows]
        filled = [self._answer.fill({name: self.plain(row.values[name]) for name in names}) for row in rows]
        stretches = [Stretch("".join(map(str, parts)), self._before_answer) for parts in filled]
        end = self._tokenizer.eos_token_id
        closing = [] if end is None else [end]
        return [[*ids, *closing] for ids in self._running.ids(stretches)]

    def _label(self, row: Row) -> int:
        """The index of a row's label."""
        label = row.values[self.task.label_column]
        if label not in self.labels:
            raise DataError(
                f"{row.where}: label {label!r}",
                f"one of {', '.join(self.labels)}",
                "Correct it, or add it to data.verbalizer",
            )
        return self.labels.index(label)
