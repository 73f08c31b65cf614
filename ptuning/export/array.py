"""Writes a soft prompt's embeddings as an array, and beside it a description in JSON.

Knows nothing of models.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy
from safetensors.torch import save_file

from ptuning.data import Template
from ptuning.errors import PromptError
from ptuning.files import require_writable, whole_file
from ptuning.prompts import SoftPrompt

ARRAY_KINDS = ("npy", "safetensors")
TENSOR_NAME = "prompt_embeddings"  # PEFT's


def write_array(prompt: SoftPrompt, path: str | Path, kind: str = "npy") -> Path:
    """Writes the virtual tokens' embeddings `[P, H]` in float32, in the order of the template's slots.

    Args:
        prompt: A prompt that is the same for every row.
        path: The array's file.
        kind: npy, or safetensors (one tensor named `prompt_embeddings`).

    Returns:
        The description's file: the array's name with `.json` behind it.

    Raises:
        PromptError: For a conditioned prompt, and for a prompt without virtual tokens.
        FileError: If a file cannot be written.
    """
    assert kind in ARRAY_KINDS
    require_fixed(prompt, "an array")
    path = Path(path)
    description = path.with_name(f"{path.name}.json")
    for each in (path, description):
        require_writable(each)
    with whole_file(path) as beside:
        if kind == "npy":
            with beside.open("wb") as file:
                numpy.save(file, prompt.embeddings_PH.numpy())
        else:
            save_file({TENSOR_NAME: prompt.embeddings_PH.contiguous()}, beside)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with whole_file(description) as beside:
        text = json.dumps({**describe(prompt), "file": path.name, "kind": kind, "sha256": digest}, indent=2)
        beside.write_text(text + "\n", encoding="utf-8")
    return description


def require_fixed(prompt: SoftPrompt, target: str) -> None:
    """Raises `PromptError` for a prompt whose virtual tokens depend on the row, and for one that has none."""
    if prompt.is_conditioned:
        raise PromptError(
            f"a conditioned prompt for {target}: its virtual tokens depend on each row's text",
            "a prompt that is the same for every row",
            "Answer with ptuning, or train one with another encoder",
        )
    if not prompt.num_virtual_tokens:
        raise PromptError(f"a prompt without virtual tokens for {target}", "at least one", "Export another prompt")


def describe(prompt: SoftPrompt) -> dict[str, Any]:
    """What a program must know to use a prompt's array: its base model, where it stands, and what answers mean."""
    task = prompt.task
    slots = Template.parse(task.template).slot_sizes if task else (prompt.num_virtual_tokens,)
    return {
        "shape": list(prompt.embeddings_PH.shape),
        "dtype": "float32",
        "base": {
            "name": prompt.base_name,
            "revision": prompt.revision,
            "task_type": prompt.task_type,
            "fingerprint": dataclasses.asdict(prompt.fingerprint) if prompt.fingerprint else None,
        },
        "task": dataclasses.asdict(task) if task else None,
        "slots": list(slots),
        "is_leading": prompt.not_peft is None,
        "library_version": prompt.library_version,
    }
