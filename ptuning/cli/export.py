"""`ptuning export`."""

import argparse
import json
from pathlib import Path
from typing import Any

from ptuning.cli.arguments import base_of
from ptuning.errors import ConfigError

_KINDS = ("npy", "safetensors", "merged", "vllm")


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    about = "write a prompt for other programs: as an array, in a copy of its base model, or for a vLLM server"
    parser = commands.add_parser("export", help=about, description=about)
    parser.add_argument(
        "prompt", metavar="PROMPT_DIR", nargs="+", help="saved prompts' directories, runs', or names on the hub"
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=_KINDS,
        help="npy, safetensors: an array; merged: a model; vllm: what a client of a vLLM server needs",
    )
    parser.add_argument("--output", required=True, metavar="PATH", help="the array's file, or the directory")
    parser.add_argument(
        "--name", action="append", help="a prompt's name in the directory, once for each (default: its own directory's)"
    )
    parser.add_argument("--model", "--base", help="the base model (default: the one that the first prompt names)")
    parser.add_argument(
        "--dtype",
        default="stored",
        choices=("stored", "float32", "bfloat16", "float16"),
        help="precision of a merged model, or of the vLLM server (default: that of the base's files)",
    )
    parser.add_argument(
        "--allow-other-base", action="store_true", help="accept a base that the prompt was not tuned on"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="allow code that comes with the model to run")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    parser.set_defaults(run=run, data=None)


def run(parsed: argparse.Namespace) -> None:
    """Writes the file or the directory, and says how it is used."""
    if parsed.to == "merged":
        _merge(parsed)
    elif parsed.to == "vllm":
        _write_vllm(parsed)
    else:
        _write_array(parsed)


def _write_array(parsed: argparse.Namespace) -> None:
    from ptuning.export import write_array
    from ptuning.prompts import SoftPrompt

    if len(parsed.prompt) > 1:
        raise ConfigError(f"{len(parsed.prompt)} prompts with --to {parsed.to}", "one", "Export them one by one")
    prompt = SoftPrompt.from_pretrained(parsed.prompt[0])
    described = write_array(prompt, parsed.output, parsed.to)
    if parsed.json:
        print(json.dumps({"file": parsed.output, "description": str(described)}))
    else:
        print(f"{prompt.num_virtual_tokens} virtual tokens of width {prompt.width}, float32")
        print(f"saved: {parsed.output}\nwhat they are: {described}")


def _merge(parsed: argparse.Namespace) -> None:
    from ptuning.export import load_prompts, merge, server_line

    prompts = load_prompts(parsed.prompt, parsed.name)
    with base_of(parsed) as base:
        merged = merge(
            base,
            prompts,
            parsed.output,
            dtype=parsed.dtype,
            allow_other_base=parsed.allow_other_base,
            trust_remote_code=parsed.trust_remote_code,
        )
    if parsed.json:
        texts = {name: each.text for name, each in merged.prompts.items()}
        print(json.dumps({"directory": parsed.output, "texts": texts, "suppressed_ids": merged.suppressed_ids}))
        return
    for name, each in merged.prompts.items():
        print(f"{name}: {len(each.tokens)} tokens, {each.tokens[0]} to {each.tokens[-1]}")
        if each.text is None:
            print(f"{name}: this tokenizer reads other ids from a row's text: send ids (README.md there)")
    print(f"saved: {parsed.output}\nhow a row is written for it: {Path(parsed.output) / 'README.md'}")
    print("transformers never generates these tokens; tell a server with each request:")
    print(server_line(merged.suppressed_ids))


def _write_vllm(parsed: argparse.Namespace) -> None:
    from ptuning.export import load_prompts, write_vllm

    prompts = load_prompts(parsed.prompt, parsed.name)
    with base_of(parsed) as base:
        written = write_vllm(
            base,
            prompts,
            parsed.output,
            dtype=parsed.dtype,
            allow_other_base=parsed.allow_other_base,
            trust_remote_code=parsed.trust_remote_code,
        )
    if parsed.json:
        dtype, names = written.embeddings.dtype, list(written.tasks)
        print(json.dumps({"directory": parsed.output, "base": base, "dtype": dtype, "prompts": names}))
        return
    print(f"saved: {parsed.output}\nhow a server is started and rows are answered: {Path(parsed.output) / 'README.md'}")
    print(f"vllm serve {base} --enable-prompt-embeds --dtype {written.embeddings.dtype}    (0.26 or newer)")
