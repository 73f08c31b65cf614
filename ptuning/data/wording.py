"""Words for a task that comes as columns and labels alone: a template, and a text for each label.

Knows nothing of models or files.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ptuning.data.task import Verbalizer
from ptuning.data.template import Template, can_be_field
from ptuning.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BEFORE = ":"
_END = "."


def template_for(columns: Sequence[str], num_virtual_tokens: int, asked: str = "Label") -> str:
    r"""A template that shows a row's columns and asks for its label: `"{prompt:20}{text}\nLabel:"`.

    Args:
        columns: The columns that are shown; more than one are told apart by their names.
        num_virtual_tokens: Virtual tokens in front.
        asked: What is asked for.

    Raises:
        ConfigError: For a column whose name no template can hold.
    """
    for name in columns:
        if not can_be_field(name):
            raise ConfigError(
                f"the column {name!r}",
                "a name without braces, colons or '!', and not 'prompt', which names the virtual tokens",
                "Rename it or leave it out",
            )
    shown = [f"{{{name}}}\n" if len(columns) == 1 else f"{name}: {{{name}}}\n" for name in columns]
    return f"{{prompt:{num_virtual_tokens}}}{''.join(shown)}{asked}:"


def with_slot(template: str, num_virtual_tokens: int) -> str:
    """The template, with virtual tokens in front if it has none."""
    return template if Template.parse(template).num_virtual_tokens else f"{{prompt:{num_virtual_tokens}}}{template}"


def verbalizer_for(labels: Sequence[str], tokenizer: "PreTrainedTokenizerBase | None" = None) -> dict[str, str]:
    """A text for each label: the label behind a space; with an end mark where one would begin another.

    Args:
        labels: The labels.
        tokenizer: The base model's, which decides what begins what; None: their letters do.
    """
    plain = {label: f" {label}" for label in labels}
    if _begins(plain, tokenizer):
        return {label: f"{text}{_END}" for label, text in plain.items()}
    return plain


def _begins(texts: Mapping[str, str], tokenizer: "PreTrainedTokenizerBase | None") -> bool:
    """Whether one of the texts begins another."""
    if tokenizer is None:
        in_order = sorted(texts.values())
        return any(after.startswith(text) for text, after in itertools.pairwise(in_order))
    try:
        Verbalizer(texts).token_ids(tokenizer, _BEFORE)
    except ConfigError:
        return True
    return False
