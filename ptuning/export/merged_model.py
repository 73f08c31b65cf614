"""Writes a copy of a base model in which the virtual tokens of soft prompts are tokens of its vocabulary.

It should load in other engines that serve the base; tried with transformers. A row is plain text, or plain ids. Knows
nothing of what a prompt means.
"""

import copy
import dataclasses
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers

from ptuning.data import Coder, Task
from ptuning.errors import ModelError
from ptuning.export.array import require_fixed
from ptuning.export.directories import describe_base, require_replaceable, revision_of, write_json
from ptuning.export.merged_card import LOGIT_BIAS, merged_card
from ptuning.export.merged_prompts import (
    FORMAT_VERSION,
    MERGED_FILE,
    MergedPrompt,
    MergedPrompts,
    description,
    read_description,
    written_as_text,
)
from ptuning.export.names import require_names
from ptuning.export.virtual_tokens import add_virtual_tokens, ids_named_by
from ptuning.export.vocabulary_rows import write_rows
from ptuning.files import whole_directory
from ptuning.model import Backbone, CausalBackbone, quietly
from ptuning.prompts import SoftPrompt

CARD_FILE = "README.md"


def merge(
    base: str | Path,
    prompts: Mapping[str, SoftPrompt],
    directory: str | Path,
    *,
    dtype: str = "stored",
    allow_other_base: bool = False,
    trust_remote_code: bool = False,
) -> MergedPrompts:
    """Writes a model directory that transformers loads by itself, as other engines that serve the base should.

    Args:
        base: The base's directory, or a hub model's name.
        prompts: Name -> prompt; a name is part of its tokens' text.
        directory: The directory to write; a merged model that is there is replaced as a whole.
        dtype: Precision of the copy: stored (as in the base's files), float32, bfloat16 or float16. A prompt is rounded
            to it.
        allow_other_base: Whether to accept prompts that were tuned on another base model of the same width.
        trust_remote_code: Whether code that comes with the model may run.

    Returns:
        What writes rows for the copy.

    Raises:
        PromptError: For a prompt that is conditioned, has no virtual tokens or was made for another base model, and for
            names that clash.
        ModelError: For a base that cannot be loaded, is quantized, an encoder-decoder or a merged model itself.
        FileError: If the directory cannot be written, or holds anything but a merged model.
    """
    path = Path(directory)
    require_replaceable(path, MERGED_FILE, "a merged model", lambda each: read_description(each)["files"])
    require_names(prompts)
    for each in prompts.values():
        require_fixed(each, "a merged model")
    backbone = _loaded(str(base), prompts, dtype, trust_remote_code)
    fingerprint = backbone.fingerprint
    for each in prompts.values():
        each.require_base(backbone.name, backbone.width, fingerprint, allow_other_base, backbone.task_type)
    num_rows = backbone.model.get_input_embeddings().num_embeddings
    tokenizer = copy.deepcopy(backbone.tokenizer)
    merged, difference = _write_prompts(backbone, tokenizer, prompts)
    about = {
        "format_version": FORMAT_VERSION,
        "library_version": metadata.version("ptuning"),
        "base": describe_base(str(base), prompts, fingerprint),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "largest_difference": difference,
        "num_rows_appended": backbone.model.get_input_embeddings().num_embeddings - num_rows,
        "max_positions": backbone.max_positions,
    }
    with whole_directory(path) as beside:
        with quietly():
            backbone.model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
            tokenizer = transformers.AutoTokenizer.from_pretrained(beside, trust_remote_code=trust_remote_code)
        for name, placed in merged.items():
            whole = Coder(dataclasses.replace(placed.task, max_length=None), backbone.tokenizer)
            merged[name] = dataclasses.replace(placed, text=written_as_text(tokenizer, whole, placed))
        _describe(beside, about, merged)
    return MergedPrompts(tokenizer, merged, backbone.max_positions)


def _write_prompts(
    backbone: Backbone, tokenizer: Any, prompts: Mapping[str, SoftPrompt]
) -> tuple[dict[str, MergedPrompt], float]:
    """Puts the prompts into the tokenizer and into the backbone's model; also returns what `write_rows` returns."""
    configs = (backbone.model.config, backbone.model.generation_config)
    named_ids = {i for each in configs for i in ids_named_by(each.to_dict())}
    sizes = {name: each.num_virtual_tokens for name, each in prompts.items()}
    tokens = add_virtual_tokens(tokenizer, sizes, named_ids)
    merged = {}
    for name, each in prompts.items():
        task = each.task or Task(f"{{prompt:{each.num_virtual_tokens}}}{{text}}")  # PEFT's, which records none
        coder = backbone.coder(task)
        ids = tuple(tokenizer.convert_tokens_to_ids(tokens[name]))
        label_ids = dict(zip(coder.labels, coder.label_ids, strict=True))
        merged[name] = MergedPrompt(tuple(tokens[name]), ids, task, None, label_ids)
    all_ids = [i for each in merged.values() for i in each.token_ids]
    return merged, write_rows(backbone, all_ids, torch.cat([each.embeddings_PH for each in prompts.values()]))


def _describe(directory: Path, about: Mapping[str, Any], prompts: Mapping[str, MergedPrompt]) -> None:
    """Writes what transformers does not: what is suppressed, the description and the card."""
    ids = sorted(i for each in prompts.values() for i in each.token_ids)
    file = directory / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    settings["suppress_tokens"] = sorted({*(settings.get("suppress_tokens") or ()), *ids})
    write_json(file, settings)
    files = sorted({each.name for each in directory.iterdir()} | {MERGED_FILE, CARD_FILE})
    bias = {str(i): LOGIT_BIAS for i in ids}
    write_json(directory / MERGED_FILE, {**about, "prompts": description(prompts), "logit_bias": bias, "files": files})
    (directory / CARD_FILE).write_text(merged_card(about["base"]["name"], prompts), encoding="utf-8")


def _loaded(base: str, prompts: Mapping[str, SoftPrompt], dtype: str, trust_remote_code: bool) -> Backbone:
    """The base on the CPU; raises `ModelError` for one that cannot take virtual tokens as rows."""
    if (Path(base) / MERGED_FILE).exists():
        raise ModelError(f"{base}, a merged model, as a base", "the base itself", "Merge all prompts in one go")
    backbone = Backbone.from_pretrained(base, dtype, "cpu", revision_of(base, prompts), trust_remote_code)
    if not isinstance(backbone, CausalBackbone):
        raise ModelError(
            f"{base}, an encoder-decoder, for a merged model", "a causal model", "Export the prompt as an array"
        )
    if getattr(backbone.model.config, "quantization_config", None) is not None:
        raise ModelError(
            f"{base}, whose weights are quantized, for a merged model",
            "a model with whole weights",
            "Merge into the model that was quantized (--allow-other-base), and quantize the result",
        )
    return backbone
