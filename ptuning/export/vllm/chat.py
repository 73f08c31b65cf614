"""A row as a chat message whose text the server tokenizes, so that only the virtual tokens are sent as embeddings.

vLLM joins the parts of a message with line breaks, so this fits where a slot stands between line breaks, and not in
front of everything. Whether the server made the same ids is seen in its answer. Knows nothing of connections.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ptuning.data import Template

_RESERVED = "<prompt_embeds>"  # which vLLM puts in the embeddings' place, and refuses in text
Part = str | range


def chat_parts(template: Template, values: Mapping[str, str]) -> list[Part] | None:
    """A row's texts and virtual tokens, as the parts of a message; None where they cannot be joined by line breaks.

    Args:
        template: The task's template.
        values: Column -> text without special tokens' words.
    """
    stretches = template.fill(values)
    if isinstance(stretches[0], int) or not any(isinstance(each, int) for each in stretches):
        return None
    parts, num_placed = list[Part](), 0
    for i, each in enumerate(stretches):
        if isinstance(each, str):
            text = _between(each, follows=i > 0, goes_on=i + 1 < len(stretches))
            if text is None or _RESERVED in each:
                return None
            parts += text
        elif isinstance(stretches[i - 1], int):
            assert isinstance(parts[-1], range)
            parts[-1] = range(parts[-1].start, num_placed + each)
        else:
            parts.append(range(num_placed, num_placed + each))
        num_placed += each if isinstance(each, int) else 0
    return parts


def messages(parts: Sequence[Part], payload_of: Callable[[range], str]) -> list[dict[str, Any]]:
    """The conversation: one turn of the user's."""
    content = [
        {"type": "text", "text": each} if isinstance(each, str) else {"type": "prompt_embeds", "data": payload_of(each)}
        for each in parts
    ]
    return [{"role": "user", "content": content}]


def is_same(own: Sequence[int], found: Sequence[int] | None) -> bool:
    """Whether a server made the same ids; in the place of virtual tokens, which are negative, it may have any."""
    return (
        found is not None and len(own) == len(found) and all(i < 0 or i == j for i, j in zip(own, found, strict=True))
    )


def _between(text: str, follows: bool, goes_on: bool) -> list[str] | None:
    """The text as parts, without the line breaks beside slots; None where these are missing."""
    if text == "\n" and follows and goes_on:
        return []
    first, last = int(follows), len(text) - int(goes_on)
    breaks = text[:first] + text[max(first, last) :]
    return [text[first:last]] if breaks == "\n" * (follows + goes_on) else None
