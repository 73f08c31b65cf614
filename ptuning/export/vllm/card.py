"""Writes the README of a directory for clients of vLLM: how the server is started, and how rows are answered.

Knows nothing of tensors or servers.
"""

import json
from collections.abc import Mapping

from ptuning.data import Task, Template

CARD_FILE = "README.md"
_CARD = """# Soft prompts for a vLLM server

{names}, tuned on {base}, made by ptuning: the virtual tokens, the tokenizer and the base's embedding rows, in {dtype}.

Start vLLM 0.26 or newer (CVE-2026-73557 was mended there) with the base itself:

```bash
vllm serve {path} --enable-prompt-embeds --dtype {dtype} --host 127.0.0.1 --port 8000
```

Answer rows with ptuning; the base's weights are not needed here:

```python
from ptuning.export import VLLMClient

with VLLMClient.load("THIS DIRECTORY", "http://127.0.0.1:8000") as client:
{calls}
```

```bash
ptuning predict "THIS DIRECTORY" --server http://127.0.0.1:8000 --data rows.csv --output answers.csv --resume
```

The server's key, where it has one, is read from the environment variable `VLLM_API_KEY`.
"""


def vllm_card(base: str, dtype: str, tasks: Mapping[str, Task]) -> str:
    """The README.

    Args:
        base: The base model's name.
        dtype: The precision of the embeddings.
        tasks: Name of a prompt -> its task.
    """
    return _CARD.format(
        names=", ".join(f"`{name}`" for name in tasks),
        base=f"`{base}`",
        path=base,
        dtype=dtype,
        calls="\n".join(_call(name, task) for name, task in tasks.items()),
    )


def _call(name: str, task: Task) -> str:
    row = json.dumps(dict.fromkeys(Template.parse(task.template).field_names, "..."))
    return f"    client.{'classify' if task.is_classification else 'generate'}([{row}], {json.dumps(name)})"
