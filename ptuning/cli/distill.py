"""`ptuning distill`."""

import json
from typing import Any

from ptuning.cli.arguments import Parser
from ptuning.errors import ConfigError

_DESCRIPTION = "Make virtual tokens that do what a long text does: an instruction, demonstrations, a document."
_FLAGS = {
    "--json": "print one JSON object, and nothing else, on stdout",
    "--print-config": "print the whole config, defaults included, and stop",
}


def run(arguments: list[str]) -> None:
    """Distils, or prints the help or the config."""
    from ptuning.config import DistillationConfig, parser

    flags = Parser(prog="ptuning distill", add_help=False, allow_abbrev=False)
    flags.add_argument("--config")
    flags.add_argument("--json", action="store_true")
    flags.add_argument("--print-config", action="store_true")
    parsed, overrides = flags.parse_known_args(arguments)
    if {"-h", "--help"} & set(overrides):
        parser(DistillationConfig, _DESCRIPTION, _FLAGS).print_help()
        return
    if parsed.config is None:
        raise ConfigError("ptuning distill without --config", "a config file", "See configs/ for examples")
    config = DistillationConfig.from_yaml(parsed.config, overrides)
    if parsed.print_config:
        print(config.to_yaml(), end="")
        return
    _report(config, parsed.json)


def _report(config: Any, is_json: bool) -> None:
    from ptuning.distillation import distill

    found = distill(config)
    if is_json:
        print(json.dumps(found.as_dict()))
        return
    print("\n".join(found.lines()))
    print(f"saved: {found.directory / 'prompt'}")
