"""The prompts of a merged model: how a row is written for it, as text or as token ids, and what its labels are.

Needs the merged model's tokenizer, and no weights. Knows nothing of how the model was made.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ptuning.data import Coder, Row, Rows, Task, Template, as_row, records
from ptuning.errors import ConfigError, DataError, FileError, PromptError
from ptuning.files import read_regular
from ptuning.model import Fingerprint, quietly
from ptuning.typed import read_json

MERGED_FILE = "ptuning_merged.json"
FORMAT_VERSION = 1
_MOST_BYTES = 1 << 26
_PROBES = ("", "a", "The plot", " was dull", "1", "é", "(", '"', "\n", "- a\n\nfilm ", "Ünlü 12,5 %!")


@dataclass(frozen=True)
class MergedPrompt:
    """A soft prompt whose virtual tokens are tokens of the model."""

    tokens: tuple[str, ...]
    """The text of each virtual token."""
    token_ids: tuple[int, ...]
    """Their ids."""
    task: Task
    """How rows become text in ptuning."""
    text: str | None
    """A row's text with the tokens in their places, for `str.format`; tokenize it without adding special tokens. None
    if this tokenizer does not make the same ids of the text, so that ids must be sent."""
    label_ids: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Label -> the token ids of its text behind a row."""

    def ids(self, own: Sequence[int]) -> list[int]:
        """Ptuning's own ids of a row as the model's: negative ids are virtual tokens."""
        return [each if each >= 0 else self.token_ids[-1 - each] for each in own]


@dataclass(frozen=True)
class _Base:
    name: str
    revision: str | None
    fingerprint: Fingerprint


@dataclass(frozen=True)
class _Described:
    format_version: int
    base: _Base
    max_positions: int | None
    prompts: dict[str, MergedPrompt]
    files: list[str]


class MergedPrompts:
    """The prompts of a merged model's directory.

    Args:
        tokenizer: The merged model's tokenizer.
        prompts: Name -> prompt.
        max_positions: The positions that the model has; None: no limit.
    """

    def __init__(self, tokenizer: Any, prompts: Mapping[str, MergedPrompt], max_positions: int | None) -> None:
        self.tokenizer, self.prompts, self._max_positions = tokenizer, dict(prompts), max_positions

    @classmethod
    def load(cls, directory: str | Path, trust_remote_code: bool = False) -> "MergedPrompts":
        """Reads a merged model's directory, without its weights.

        Raises:
            PromptError: If it is no merged model's directory, or a broken one.
        """
        import transformers

        described = read_description(Path(directory))
        try:
            with quietly():
                tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
        except Exception as error:  # transformers and tokenizers each raise their own errors
            raise _broken(Path(directory), str(error)) from error
        prompts = {name: _prompt(each) for name, each in described["prompts"].items()}
        return cls(tokenizer, prompts, described["max_positions"])

    @property
    def suppressed_ids(self) -> list[int]:
        """The ids of all virtual tokens, which must not be generated."""
        return sorted({i for each in self.prompts.values() for i in each.token_ids})

    def ids(self, rows: Rows, prompt: str | None = None, max_new_tokens: int | None = None) -> list[list[int]]:
        """Each row's token ids, cut where ptuning cuts them.

        Args:
            rows: One mapping per row, with the template's columns, or a text if it has one column; a data frame or data
                set of such rows.
            prompt: A prompt's name; None if there is only one.
            max_new_tokens: The tokens to leave room for; None: those of the longest label.

        Raises:
            DataError: For a row that lacks a column or does not fit.
            PromptError: For an unknown prompt.
        """
        return self._encoded(rows, self._named(prompt), max_new_tokens)[1]

    def texts(self, rows: Rows, prompt: str | None = None, max_new_tokens: int | None = None) -> list[str]:
        """Each row's text; tokenized without adding special tokens, it has exactly the ids of `ids`.

        A special token's words in a row are written with a space in them, so that no row can write a virtual token.
        Arguments and errors as in `ids`.

        Raises:
            DataError: Also for a row that has other ids as text, as one that is cut.
            PromptError: Also for a prompt whose rows this tokenizer cannot read as text.
        """
        name = self._named(prompt)
        text = self.prompts[name].text
        if text is None:
            raise PromptError(
                f"texts of prompt {name!r}, whose rows have other ids where this tokenizer reads them as text",
                "rows as token ids",
                "Send what ids() returns",
            )
        template, (found, all_ids) = Template.parse(text), self._encoded(rows, name, max_new_tokens)
        plain = self._coders[name].plain
        texts = ["".join(map(str, template.fill(_plain(row, template, plain)))) for row in found]
        for row, written, ids in zip(found, texts, all_ids, strict=True):
            if tokenized(self.tokenizer, written) != ids:
                raise DataError(
                    f"{row.where}: its text has other ids, as that of a row which is cut",
                    "a row that fits whole",
                    "Shorten it, or send what ids() returns",
                )
        return texts

    def _named(self, prompt: str | None) -> str:
        name = next(iter(self.prompts)) if prompt is None and len(self.prompts) == 1 else prompt
        if name not in self.prompts:
            raise PromptError(f"prompt {name!r}", f"one of {', '.join(self.prompts)}", "Name one of them")
        return name

    @cached_property
    def _coders(self) -> dict[str, Coder]:
        return {name: Coder(each.task, self.tokenizer, self._max_positions) for name, each in self.prompts.items()}

    def _encoded(self, rows: Rows, name: str, max_new_tokens: int | None) -> tuple[list[Row], list[list[int]]]:
        coder = self._coders[name]
        found = [as_row(each, f"row {i}", coder.columns) for i, each in enumerate(records(rows))]
        if max_new_tokens is None:
            examples = coder.encode_questions(found)
        else:
            examples = coder.encode_prompts(found, max_new_tokens)
        return found, [self.prompts[name].ids(each.ids) for each in examples]


def written_as_text(tokenizer: Any, coder: Coder, prompt: MergedPrompt) -> str | None:
    """The text of a row with the prompt's tokens in it; None if the tokenizer reads no such text as ptuning's own ids.

    The words beside a token are tokenized apart from it, and some tokenizers put a space before each such stretch, or
    none before the first one. So the first text is tried with and without a space.

    Args:
        tokenizer: The merged model's tokenizer, as it is read from its directory.
        coder: The coder of the prompt's task with the base's tokenizer; it cuts no row.
        prompt: The prompt; its own text does not matter.
    """
    texts, num_taken = [], 0
    for size in Template.parse(prompt.task.template).slot_sizes:
        texts.append("".join(prompt.tokens[num_taken : num_taken + size]))
        num_taken += size
    rows = [Row({name: _probe(i + j) for j, name in enumerate(coder.columns)}, "") for i in range(len(_PROBES))]
    wanted = [prompt.ids(each.ids) for each in coder.encode_questions(rows)]
    for space in ("", " "):
        template = coder.with_texts(texts, space)
        filled = ["".join(map(str, template.fill(row.values))) for row in rows]
        if [tokenized(tokenizer, each) for each in filled] == wanted:
            return template.text
    return None


def tokenized(tokenizer: Any, text: str) -> list[int]:
    """A text's ids as other programs make them, when they are told to add no special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def read_description(directory: Path) -> dict[str, Any]:
    """What a merged model's directory says of itself; raises `PromptError` where there is no such thing."""
    if not (directory / MERGED_FILE).is_file():
        raise PromptError(f"{directory} has no {MERGED_FILE}", "a merged model's directory", "Check the path")
    try:
        described = read_json(read_regular(directory / MERGED_FILE, _MOST_BYTES), _Described)
    except (ValueError, FileError) as error:
        raise _broken(directory, str(error)) from error
    if described["format_version"] != FORMAT_VERSION:
        told = f"{directory / MERGED_FILE} has format version {described['format_version']}"
        raise PromptError(told, str(FORMAT_VERSION), "Upgrade ptuning, or export the prompts again")
    return described


def description(prompts: Mapping[str, MergedPrompt]) -> dict[str, Any]:
    """The prompts as plain data."""
    return {name: dataclasses.asdict(each) for name, each in prompts.items()}


def _prompt(described: Mapping[str, Any]) -> MergedPrompt:
    try:
        task = Task(**described["task"])
    except (TypeError, ConfigError) as error:
        raise PromptError(
            f"a prompt with the task {described['task']} ({error})", "a task", "Upgrade ptuning"
        ) from error
    rest = {key: described[key] for key in ("text", "label_ids")}
    return MergedPrompt(tuple(described["tokens"]), tuple(described["token_ids"]), task, **rest)


def _plain(row: Row, template: Template, plain: Any) -> dict[str, str]:
    return {name: plain(row.values[name]) for name in template.field_names}


def _probe(i: int) -> str:
    return _PROBES[i % len(_PROBES)]


def _broken(directory: Path, reason: str) -> PromptError:
    return PromptError(
        f"{directory} is a broken merged model ({reason})", "a complete one", "Copy it, or export its prompts, again"
    )
