"""Finds a place in a tokenizer's vocabulary for each virtual token: reserved tokens first, then new ones.

Knows nothing of embeddings.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken

from ptuning.errors import ModelError, PromptError

# <|reserved_special_token_7|>, <unused12>, >>UNUSED_0<<, <|placeholder3|>, <|dummy_4|>; a word has no brackets
_RESERVED = re.compile(r"[<>\[]+\W?(reserved|unused|place\W?holder|dummy)\D{0,30}\d+\W?[<>\]]+", re.IGNORECASE)
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def add_virtual_tokens(tokenizer: Any, sizes: Mapping[str, int], named_ids: set[int]) -> dict[str, list[str]]:
    """Makes each virtual token a special token of the tokenizer.

    A token that the tokenizer holds in reserve, such as `<|reserved_special_token_7|>` or `<unused12>`, is taken as it
    is; where none is left, the tokens are `<|NAME_0|>`, `<|NAME_1|>` and so on, with the ids behind all others.

    Args:
        tokenizer: The base's tokenizer, which is changed.
        sizes: Name of a prompt -> P, its number of virtual tokens.
        named_ids: Ids that the model's configuration names, which are not free.

    Returns:
        Name of a prompt -> the text of each virtual token.

    Raises:
        PromptError: If the text of a new token is a token already.
        ModelError: If the tokenizer gives a new token the id of another one.
    """
    vocabulary = tokenizer.get_vocab()
    free = iter(reserved_tokens(tokenizer, named_ids))
    tokens = {name: [next(free, f"<|{name}_{i}|>") for i in range(size)] for name, size in sizes.items()}
    for name, own in tokens.items():
        clash = next((each for i, each in enumerate(own) if each == f"<|{name}_{i}|>" and each in vocabulary), None)
        if clash is not None:
            raise PromptError(
                f"a prompt named {name!r} for a tokenizer with the token {clash}", "new tokens", "Rename it"
            )
    every = [each for own in tokens.values() for each in own]
    whole = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    tokenizer.add_tokens([AddedToken(each, **whole) for each in every], special_tokens=True)
    taken = named_ids | set(vocabulary.values())
    new_ids = [tokenizer.convert_tokens_to_ids(each) for each in every if each not in vocabulary]
    if len(set(new_ids)) < len(new_ids) or taken & set(new_ids):
        raise ModelError(
            f"a tokenizer that gives new tokens the ids {_told(new_ids)}, which are in use",
            "free ids behind all others",
            "Export the prompt as an array",
        )
    return tokens


def reserved_tokens(tokenizer: Any, named_ids: set[int]) -> list[str]:
    """The tokens that the tokenizer holds in reserve and nothing names, by id."""
    named = named_ids | {getattr(tokenizer, f"{role}_token_id", None) for role in _ROLES}
    templates = str(tokenizer.chat_template)
    by_id = sorted((i, token) for token, i in tokenizer.get_vocab().items())
    return [token for i, token in by_id if _RESERVED.fullmatch(token) and i not in named and token not in templates]


def ids_named_by(config: Mapping[Any, Any]) -> Iterator[int]:
    """The token ids that a configuration names, such as `pad_token_id`, also those of configurations in it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from ids_named_by(value)
        elif str(key).endswith(("token_id", "token_ids", "token_index")):
            values: Sequence[Any] = value if isinstance(value, list) else [value]
            yield from (each for each in values if isinstance(each, int))


def _told(ids: Sequence[int]) -> str:
    return f"{min(ids)} to {max(ids)}"
