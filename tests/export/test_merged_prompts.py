"""Rows for a merged model: as text they have exactly ptuning's own ids, whatever the tokenizer."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from families import TOKENIZERS, tiny_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from ptuning.data.coder import Coder
from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.data.template import Template
from ptuning.errors import DataError, PromptError
from ptuning.export.merged_prompts import MERGED_FILE, MergedPrompt, MergedPrompts, tokenized, written_as_text
from ptuning.export.virtual_tokens import add_virtual_tokens

LEADING = Task("{prompt:3}review: {text}\nsentiment:", verbalizer={"bad": " bad", "good": " good"})
MIDDLE = Task("review: {text}{prompt:2} the {subject}{prompt:1} was")
LAST = Task("review: {{{text}}} was{prompt:3}")
BARE = {"byte-level", "metaspace-never"}  # tokenizers that put no space before a text


def placed(task: Task, kind: str = "byte-level", frame: str = "<s> $A") -> tuple[Any, Coder, MergedPrompt]:
    """The merged tokenizer, the coder with the base's tokenizer, and the prompt without its text."""
    base = tiny_tokenizer(frame, kind)
    tokenizer = copy.deepcopy(base)
    tokens = add_virtual_tokens(tokenizer, {"film": 3}, set())["film"]
    coder = Coder(task, base)
    prompt = MergedPrompt(tuple(tokens), tuple(tokenizer.convert_tokens_to_ids(tokens)), task, None)
    return tokenizer, coder, prompt


def merged(task: Task, kind: str = "byte-level", max_positions: int | None = None) -> MergedPrompts:
    tokenizer, coder, prompt = placed(task, kind)
    text = written_as_text(tokenizer, coder, prompt)
    whole = MergedPrompt(prompt.tokens, prompt.token_ids, task, text)
    return MergedPrompts(tokenizer, {"film": whole}, max_positions)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("task", [LEADING, MIDDLE, LAST], ids=["leading", "middle", "last"])
def test_a_text_is_given_only_where_it_has_ptunings_own_ids(task: Task, kind: str) -> None:
    tokenizer, coder, prompt = placed(task, kind)
    text = written_as_text(tokenizer, coder, prompt)
    assert (text is not None) or kind not in BARE
    values = {"text": "a bright film", "subject": "plot"}
    (example,) = coder.encode_questions([Row(values, "")])
    if text is not None:
        written = "".join(map(str, Template.parse(text).fill(values)))
        assert written == text.format(**values)
        assert tokenized(tokenizer, written) == prompt.ids(example.ids)


def test_some_tokenizers_that_put_spaces_need_ids_and_others_another_spelling() -> None:
    assert merged(MIDDLE, "prepend").prompts["film"].text is None
    assert merged(LEADING, "metaspace-first").prompts["film"].text == (
        "<|film_0|><|film_1|><|film_2|><s> review: {text}\nsentiment:"
    )
    assert merged(LEADING, "prepend").prompts["film"].text == (
        "<|film_0|><|film_1|><|film_2|><s>review: {text}\nsentiment:"
    )


def test_ids_are_given_where_no_text_is() -> None:
    own = merged(MIDDLE, "prepend")
    _, coder, prompt = placed(MIDDLE, "prepend")
    values = {"text": "a film", "subject": "plot"}
    (example,) = coder.encode_questions([Row(values, "")])
    assert own.ids([values]) == [prompt.ids(example.ids)]
    assert min(own.ids([values])[0]) >= 0
    with pytest.raises(PromptError, match=r"texts of prompt 'film', .*; expected rows as token ids"):
        own.texts([values])


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40), subject=st.text(max_size=8))
def test_any_row_has_the_same_ids_as_text(text: str, subject: str) -> None:
    for task in (LEADING, MIDDLE, LAST):
        own, rows = merged(task), [{"text": text, "subject": subject}]
        (written,) = own.texts(rows)
        (example,) = Coder(task, tiny_tokenizer()).encode_questions([Row(rows[0], "")])
        assert [tokenized(own.tokenizer, written)] == own.ids(rows) == [own.prompts["film"].ids(example.ids)]


def test_a_row_cannot_write_a_virtual_token() -> None:
    own = merged(LEADING)
    (plain,), (written,) = own.ids(["a film"]), own.ids(["a <|film_1|> film"])
    taken = set(own.prompts["film"].token_ids)
    assert sum(i in taken for i in plain) == sum(i in taken for i in written) == 3
    assert "< |film_1|>" in own.texts(["a <|film_1|> film"])[0]


def test_a_row_that_is_cut_has_ids_and_no_text() -> None:
    own = merged(LEADING, max_positions=24)
    assert len(own.ids(["film " * 40])[0]) <= 23
    with pytest.raises(DataError, match=r"row 1: its text has other ids, .*; expected a row that fits whole"):
        own.texts(["a", "film " * 40])
    (shorter,) = merged(LEADING, max_positions=34).ids(["film " * 40], max_new_tokens=10)
    assert len(shorter) == 24


def test_an_unknown_prompt_is_told() -> None:
    with pytest.raises(PromptError, match="prompt 'plot'; expected one of film"):
        merged(LEADING).ids(["a"], "plot")


def test_a_directory_that_is_broken_or_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=rf"has no {MERGED_FILE}; expected a merged model's directory"):
        MergedPrompts.load(tmp_path)
    described: dict[str, Any] = {
        "format_version": 1,
        "base": {"name": "b", "revision": None, "fingerprint": {"architecture": {}, "weights": [], "dtype": ""}},
        "max_positions": None,
        "prompts": {},
        "files": [],
    }
    for changes, message in (
        ({"prompts": []}, "is a broken merged model"),
        ({"format_version": 9}, "has format version 9; expected 1"),
        ({}, "is a broken merged model"),  # no tokenizer
    ):
        (tmp_path / MERGED_FILE).write_text(json.dumps({**described, **changes}))
        with pytest.raises(PromptError, match=message):
            MergedPrompts.load(tmp_path)


def test_text_behind_the_row_is_closed_by_an_end_of_text_token() -> None:
    tokenizer = tiny_tokenizer("<s> $A </s>")
    coder = Coder(Task("{prompt:1}a {text}"), tokenizer, closes=True)
    assert coder.with_texts(["X"]).text == "X<s>a {text}</s>"
    assert Coder(Task("{prompt:1}"), tokenizer).with_texts(["X"]).text == "X<s>"


def test_tiny_models_tokenizers_are_those_that_are_merged() -> None:
    assert len(tiny_model("llama")[1]) == len(tiny_tokenizer())
