"""Writes the README of a merged model's directory: how a row is written for it, and what a server must be told.

Knows nothing of tensors or directories.
"""

import json
from collections.abc import Mapping, Sequence

from ptuning.data import Template
from ptuning.export.merged_prompts import MergedPrompt

LOGIT_BIAS = -100  # the least that servers take

_CARD = """# A base model with soft prompts in its vocabulary

{base} with {num_tokens} virtual tokens in its vocabulary, made by ptuning: those of {names}. Once these tokens
are ruled out (below), text without them is answered as by the base.

{prompts}
## Tokens that must not be generated

A virtual token has no meaning in an answer. transformers reads `suppress_tokens` in `generation_config.json` and never
generates one. To a server that does not read it, such as vLLM or llama.cpp's, send with each request

```json
{bias}
```

or, where it takes `bad_words`, the tokens' texts. `allowed_token_ids` with the labels' ids does without both.
"""
_PROMPT = """## {name}

{how}
"""
_TEXT = """A row's text, in Python's `str.format`; answers follow at its end:

```python
TEXT = {text}
ids = tokenizer(TEXT.format({columns}), add_special_tokens=False)
```

The begin-of-text token, where the model has one, is written in the text: tell a server not to add its own
(`"add_special_tokens": false`). Take virtual tokens and other special tokens out of what users write:
`ptuning.export.MergedPrompts.load(directory).texts(rows, {name})` does it.
"""
_IDS = """The tokenizer puts spaces beside special tokens, so no text of a row has the ids that the prompt was trained
with. Send token ids: `ptuning.export.MergedPrompts.load(directory).ids(rows, {name})`.
"""


def merged_card(base: str, prompts: Mapping[str, MergedPrompt]) -> str:
    """The README.

    Args:
        base: The base model's name.
        prompts: Name -> prompt.
    """
    ids = sorted(i for each in prompts.values() for i in each.token_ids)
    return _CARD.format(
        base=f"`{base}`",
        num_tokens=len(ids),
        names=", ".join(f"`{name}`" for name in prompts),
        prompts="\n".join(_PROMPT.format(name=name, how=_how(name, each)) for name, each in prompts.items()),
        bias=server_line(ids),
    )


def server_line(ids: Sequence[int]) -> str:
    """What a request to a server must hold, so that it does not answer with any of these ids."""
    return f'"logit_bias": {json.dumps({str(i): LOGIT_BIAS for i in ids})}'


def _how(name: str, prompt: MergedPrompt) -> str:
    if prompt.text is None:
        how = _IDS.format(name=json.dumps(name))
    else:
        columns = ", ".join(f"{each}=..." for each in Template.parse(prompt.text).field_names)
        how = _TEXT.format(text=repr(prompt.text), columns=columns, name=json.dumps(name))
    if prompt.label_ids:
        how += f"\nThe token ids of each label: `{json.dumps(prompt.label_ids)}`."
    return how
