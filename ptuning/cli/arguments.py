"""The arguments that commands share, and the model and the row that they name.

Knows nothing of what a command does.
"""

import argparse
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ptuning.data import require_source
from ptuning.errors import ConfigError, DataError, ModelError, PromptError


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, and shows its help without colours."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.color = False  # Python 3.14 has them, and they would be printed as escapes

    def error(self, message: str) -> NoReturn:
        """Raises an error that the command line turns into exit status 2."""
        raise ConfigError(message, "a command line as --help shows it", f"See {self.prog} --help")


def config_of(
    kind: Any,
    arguments: Sequence[str],
    description: str,
    flags: Mapping[str, str],
    values: Collection[str] = (),
    overrides_of: Callable[[Mapping[str, Any]], list[str]] = lambda _: [],
) -> tuple[Any, argparse.Namespace] | None:
    """The config that a command line names, and the command's own options; None where these only asked to print.

    Args:
        kind: The config class.
        arguments: The command line behind the command.
        description: What the command does.
        flags: The options without a value, `--print-config` among them -> their explanations.
        values: The options with a value, beside `--config`.
        overrides_of: Gives the settings that these options stand for.
    """
    from ptuning.config import from_yaml, parser

    own = Parser(prog=kind.command, add_help=False, allow_abbrev=False)
    for name in ("--config", *values):
        own.add_argument(name)
    for flag in flags:
        own.add_argument(flag, action="store_true")
    parsed, overrides = own.parse_known_args(arguments)
    if {"-h", "--help"} & set(overrides):
        parser(kind, description, flags).print_help()
        return None
    if parsed.config is None:
        raise ConfigError(f"{kind.command} without --config", "a config file", "See configs/ for examples")
    config = from_yaml(kind, parsed.config, [*overrides, *overrides_of(vars(parsed))])
    if parsed.print_config:
        print(config.to_yaml(), end="")
        return None
    return config, parsed


def prompt_command(commands: Any, name: str, help_: str, run: Any) -> argparse.ArgumentParser:
    """Adds a command that takes a saved prompt."""
    parser = commands.add_parser(name, help=help_, description=help_)
    names = "a saved prompt's directory, a run's, or a prompt's name on the hub: user/name or user/name@revision"
    parser.add_argument("prompt", metavar="PROMPT_DIR", help=names)
    parser.add_argument("--model", help="the base model (default: the one that the prompt names)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument(
        "--quantization", default="none", choices=("none", "int8", "int4"), help="of the base model's weights"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: the first accelerator)")
    parser.add_argument(
        "--allow-other-base", action="store_true", help="accept a base that the prompt was not tuned on"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="allow code that comes with the model to run")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    parser.add_argument("--batch-size", type=positive, default=32, help="rows read at once (default: 32)")
    parser.add_argument("--max-batch-tokens", type=positive, help="tokens read at once (default: no limit)")
    parser.set_defaults(run=run)
    return parser


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """The arguments with flags as they are written here: `--max_new_tokens` is `--max-new-tokens`.

    A setting of a config, such as `--train.max-steps`, is written with underscores.
    """
    found = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if re.fullmatch(r"--[A-Za-z][\w.-]*", name):
            name = f"--{name[2:].replace('-', '_')}" if "." in name else name.replace("_", "-")
        found.append(f"{name}{equals}{value}")
    return found


def require_paths(parsed: argparse.Namespace) -> None:
    """Raises `PTuningError` for a prompt or rows that do not exist, before a model is loaded for them."""
    if getattr(parsed, "model", None) == "":
        raise ConfigError("--model ''", "a model's directory, or its name on the hub", "Name one, or leave it out")
    for prompt in _prompts(parsed):
        if not Path(prompt).is_dir() and not _is_hub_name(prompt):
            raise PromptError(f"prompt directory {prompt} does not exist", "a saved prompt", "Check the path")
    if parsed.data is not None:
        require_source(parsed.data)


def _is_hub_name(name: str) -> bool:
    """As `ptuning.model.is_hub_name`, which is slow to import."""
    from ptuning.model import is_hub_name

    return is_hub_name(name)


def _prompts(parsed: argparse.Namespace) -> list[str]:
    """The directories of the prompts that a command takes: none, one or several."""
    given = parsed.prompt or []
    return [given] if isinstance(given, str) else given


def positive(text: str) -> int:
    """An integer of 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 1 or more")
    return int(text)


@contextmanager
def base_of(parsed: argparse.Namespace) -> Iterator[str]:
    """The base model to load; an error while it loads also says that another can be given."""
    from ptuning.prompts import SoftPrompt

    prompt = _prompts(parsed)[0]
    base = parsed.model or SoftPrompt.from_pretrained(prompt).base_name
    if base is None:
        raise PromptError(f"{prompt} names no base model", "a base model", "Give one with --model")
    try:
        yield base
    except ModelError as error:
        if parsed.model:
            raise
        hint = f"{error.remedy}, or give the base that {prompt} was tuned on with --model"
        raise ModelError(error.received, error.expected, hint) from error


def load_model(parsed: argparse.Namespace) -> Any:
    """The prompted model that the arguments name."""
    from ptuning.inference import PromptedLM

    with base_of(parsed) as base:
        return PromptedLM.from_pretrained(
            base,
            {"prompt": parsed.prompt},
            dtype=parsed.dtype,
            device=parsed.device,
            allow_other_base=parsed.allow_other_base,
            trust_remote_code=parsed.trust_remote_code,
            quantization=parsed.quantization,
            batch_size=parsed.batch_size,
            max_batch_tokens=parsed.max_batch_tokens,
            progress=parsed.data is not None,
        )


def read_options(parsed: argparse.Namespace, progress: bool, keeps_bars: bool = True) -> Any:
    """How to read rows, as the arguments say."""
    from ptuning.forward import ReadOptions

    return ReadOptions(parsed.batch_size, parsed.max_batch_tokens, progress=progress, keeps_bars=keeps_bars)


def one_row(text: str, columns: Sequence[str]) -> dict[str, str]:
    """The row of a template with one column."""
    if len(columns) != 1:
        told = f"--input for a template with the columns {', '.join(columns)}"
        raise DataError(told, "one column", "Write the row into a file, and give it with --data")
    return {columns[0]: text}
