"""Writes the directory that a client of a vLLM server needs.

Loads the whole base once, to take the probes. Knows nothing of servers.
"""

import dataclasses
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ptuning.data import Task
from ptuning.errors import ModelError
from ptuning.export.array import require_fixed
from ptuning.export.directories import describe_base, require_replaceable, revision_of, write_json
from ptuning.export.names import require_names
from ptuning.export.vllm.card import CARD_FILE, vllm_card
from ptuning.export.vllm.embeddings import EMBEDDINGS_FILE, PROMPT, VOCABULARY, sha256_of
from ptuning.export.vllm.exported import FORMAT_VERSION, VLLM_FILE, ExportedPrompts, read_description
from ptuning.export.vllm.probes import probes_of
from ptuning.files import whole_directory
from ptuning.model import Backbone, CausalBackbone, quietly
from ptuning.prompts import SoftPrompt


def write_vllm(
    base: str | Path,
    prompts: Mapping[str, SoftPrompt],
    directory: str | Path,
    *,
    dtype: str = "stored",
    allow_other_base: bool = False,
    trust_remote_code: bool = False,
) -> ExportedPrompts:
    """Writes what `VLLMClient` needs: prompts, tasks, the tokenizer, the base's embedding rows and its probes.

    The rows are copied, so that the machine on which the client runs needs neither the base nor access to it.

    Args:
        base: The base's directory, or a hub model's name.
        prompts: Name -> prompt.
        directory: The directory to write; an earlier export that is there is replaced as a whole.
        dtype: The server's precision: stored (as in the base's files), float32, bfloat16 or float16. Embeddings are
            sent in it; a server that has another one rounds them itself.
        allow_other_base: Whether to accept prompts that were tuned on another base model of the same width.
        trust_remote_code: Whether code that comes with the model may run.

    Returns:
        What the directory holds.

    Raises:
        PromptError: For a prompt that is conditioned, has no virtual tokens or was made for another base model, and for
            names that clash.
        ModelError: For a base that cannot be loaded or is an encoder-decoder.
        FileError: If the directory cannot be written, or holds anything but such an export.
    """
    path = Path(directory)
    require_replaceable(path, VLLM_FILE, "an export for vLLM", lambda each: read_description(each)[0]["files"])
    require_names(prompts)
    for each in prompts.values():
        require_fixed(each, "vLLM")
    backbone = Backbone.from_pretrained(base, dtype, "cpu", revision_of(str(base), prompts), trust_remote_code)
    if not isinstance(backbone, CausalBackbone):
        raise ModelError(
            f"{base}, an encoder-decoder, for vLLM, which takes embeddings for causal models only",
            "a causal model",
            "Answer with ptuning",
        )
    for each in prompts.values():
        each.require_base(backbone.name, backbone.width, backbone.fingerprint, allow_other_base, backbone.task_type)
    tasks = {name: each.task or Task(f"{{prompt:{each.num_virtual_tokens}}}{{text}}") for name, each in prompts.items()}
    about: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "library_version": metadata.version("ptuning"),
        "base": describe_base(str(base), prompts, backbone.fingerprint),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "max_positions": backbone.max_positions,
        "end_ids": backbone.end_ids,
        "probes": [dataclasses.asdict(each) for each in probes_of(backbone)],
        "prompts": {name: dataclasses.asdict(each) for name, each in tasks.items()},
        "sha256": {name: sha256_of(each.embeddings_PH) for name, each in prompts.items()},
    }
    with whole_directory(path) as beside:
        _write_embeddings(backbone, prompts, beside / EMBEDDINGS_FILE)
        with quietly():
            backbone.tokenizer.save_pretrained(beside)
        (beside / CARD_FILE).write_text(vllm_card(str(base), about["dtype"], tasks), encoding="utf-8")
        write_json(
            beside / VLLM_FILE, {**about, "files": sorted({*(each.name for each in beside.iterdir()), VLLM_FILE})}
        )
    return ExportedPrompts.load(path, trust_remote_code)


@torch.no_grad()
def _write_embeddings(backbone: Backbone, prompts: Mapping[str, SoftPrompt], file: Path) -> None:
    """Writes the vocabulary as the model computes with it, and the prompts, in the server's precision."""
    named = {f"{PROMPT}{name}": each.embeddings_PH.to(backbone.dtype) for name, each in prompts.items()}
    save_file({VOCABULARY: backbone.vocabulary_VH.clone().contiguous(), **named}, file)
