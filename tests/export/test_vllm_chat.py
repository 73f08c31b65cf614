"""Rows as chat messages: the parts, joined by line breaks as vLLM joins them, are the filled template."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptuning.data import Template
from ptuning.export.vllm.chat import chat_parts, is_same, messages

PIECES = st.lists(st.sampled_from(["\n", "a", "{text}", "{prompt:2}", "{prompt:1}", "\n\n"]), min_size=1, max_size=8)


def joined(parts: list[str | range]) -> list[str | int]:
    """What vLLM makes of the parts: text, with the places of virtual tokens."""
    found: list[str | int] = []
    for i, each in enumerate(parts):
        new: list[str | int] = [each] if isinstance(each, str) else list(each)
        for item in ["\n", *new] if i else new:
            if isinstance(item, str) and found and isinstance(found[-1], str):
                found[-1] += item
            else:
                found.append(item)
    return [each for each in found if each != ""]


def filled(template: Template, text: str) -> list[str | int]:
    found: list[str | int] = []
    num_placed = 0
    for each in template.fill({"text": text}):
        found += [each] if isinstance(each, str) else range(num_placed, num_placed + each)
        num_placed += each if isinstance(each, int) else 0
    return [each for each in found if each != ""]


@given(PIECES, st.sampled_from(["a film", "", "b\n", "\n"]))
def test_parts_joined_by_line_breaks_are_the_row(pieces: list[str], text: str) -> None:
    template = Template.parse("".join(pieces))
    parts = chat_parts(template, {"text": text})
    if parts is not None:
        assert joined(parts) == filled(template, text)


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{text}\n{prompt:3}\nlabel:", ["a", range(3), "label:"]),
        ("{text}\n{prompt:3}", ["a", range(3)]),
        ("{text}\n{prompt:3}{prompt:2}\n", ["a", range(5), ""]),
        ("{text}\n{prompt:3}\n{prompt:2}\n\n{prompt:1}", ["a", range(3), range(3, 5), "", range(5, 6)]),
        ("{prompt:3}\n{text}", None),  # in front of everything, where no message can have it
        ("{text} {prompt:3}\nlabel:", None),
        ("{text}\n{prompt:3}label:", None),
        ("{text}", None),
    ],
)
def test_slots_stand_between_line_breaks(template: str, parts: list[str | range] | None) -> None:
    assert chat_parts(Template.parse(template), {"text": "a"}) == parts


def test_text_with_the_servers_own_mark_is_not_sent_as_text() -> None:
    assert chat_parts(Template.parse("{text}\n{prompt:3}"), {"text": "a <prompt_embeds>"}) is None


def test_a_message_holds_texts_and_embeddings() -> None:
    (turn,) = messages(["a", range(2), "b"], lambda places: f"embedded {len(places)}")
    assert turn == {
        "role": "user",
        "content": [
            {"type": "text", "text": "a"},
            {"type": "prompt_embeds", "data": "embedded 2"},
            {"type": "text", "text": "b"},
        ],
    }


def test_ids_are_compared_but_for_virtual_tokens() -> None:
    assert is_same([5, -1, -2, 6], [5, 99, 99, 6])
    assert not is_same([5, -1, 6], [5, 99, 7])
    assert not is_same([5, -1, 6], [5, 99, 6, 7])
    assert not is_same([5], None)
