"""`ptuning distill`."""

import json
from typing import Any

from ptuning.cli.arguments import config_of

_DESCRIPTION = "Make virtual tokens that do what a long text does: an instruction, demonstrations, a document."
_FLAGS = {
    "--json": "print one JSON object, and nothing else, on stdout",
    "--print-config": "print the whole config, defaults included, and stop",
}


def run(arguments: list[str]) -> None:
    """Distils, or prints the help or the config."""
    from ptuning.config import DistillationConfig

    given = config_of(DistillationConfig, arguments, _DESCRIPTION, _FLAGS)
    if given:
        config, parsed = given
        _report(config, parsed.json)


def _report(config: Any, is_json: bool) -> None:
    from ptuning.distillation import distill

    found = distill(config)
    if is_json:
        print(json.dumps(found.as_dict()))
        return
    print("\n".join(found.lines()))
    print(f"saved: {found.directory / 'prompt'}")
