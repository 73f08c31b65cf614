"""Places of virtual tokens in a vocabulary."""

import pytest
from families import tiny_tokenizer
from tokenizers import AddedToken

from ptuning.errors import ModelError
from ptuning.export.virtual_tokens import add_virtual_tokens, ids_named_by, reserved_tokens

RESERVED = ["<|reserved_special_token_12|>", "<unused7>", "[unused3]", ">>UNUSED_0<<", "<|placeholder1|>"]
RESERVED += ["<|dummy_4|>", "<\uff5cplace\u2581holder\u2581no\u25815\uff5c>"]
NOT_RESERVED = ["unused1", "<|im_start|>", "<|unused|>", "dummy_2", "<image_3>"]


def test_reserved_tokens_are_those_whose_names_say_so() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([*RESERVED, *NOT_RESERVED])
    assert reserved_tokens(tokenizer, set()) == RESERVED


def test_reserved_tokens_that_something_names_are_not_free() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<unused{i}>" for i in range(5)])
    tokenizer.pad_token = "<unused0>"
    tokenizer.chat_template = f"{tokenizer.chat_template}<unused1>"
    named = set(ids_named_by({"eos_token_id": [1, 340], "text_config": {"image_token_index": 341}, 0: "a"}))
    assert named == {1, 340, 341}
    assert reserved_tokens(tokenizer, named) == ["<unused4>"]


def test_a_reserved_token_becomes_a_special_token_that_takes_no_spaces() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<unused0>", special=False, lstrip=True, rstrip=True, normalized=True)])
    assert add_virtual_tokens(tokenizer, {"film": 1}, set()) == {"film": ["<unused0>"]}
    token = tokenizer.added_tokens_decoder[338]
    assert (token.special, token.lstrip, token.rstrip, token.normalized) == (True, False, False, False)
    words = [tokenizer(text, add_special_tokens=False).input_ids for text in ("good ", " film", "good <unused0> film")]
    assert words[2] == [*words[0], 338, *words[1]]


def test_an_id_that_the_model_names_is_not_given_to_a_new_token() -> None:
    with pytest.raises(ModelError, match="a tokenizer that gives new tokens the ids 338 to 340, which are in use"):
        add_virtual_tokens(tiny_tokenizer(), {"film": 3}, {339})
