"""`ptuning compare`."""

import json
from collections.abc import Mapping
from typing import Any

from ptuning.cli.arguments import config_of

_DESCRIPTION = "Compare ways to do a task on the same rows: prompting, retrieval, features, prompt tuning, weights."
_VALUES = {
    "--budget": "compare.budget",
    "--seeds": "compare.seeds",
    "--rates": "compare.rates",
    "--ways": "compare.ways",
}
_SWITCHES = {"--quick": "compare.quick", "--curve": "compare.curve"}
_FLAGS = {
    "--quick": "do less: 1 seed, 60 steps, fewer rows and examples, no verdict (compare.quick)",
    "--curve": "also compare on 16, 64 and 256 training rows (compare.curve)",
    "--json": "print one JSON object, and nothing else, on stdout",
    "--print-config": "print the whole config, defaults included, and stop",
}


def run(arguments: list[str]) -> None:
    """Compares, or prints the help or the config."""
    from ptuning.config import ComparisonConfig

    given = config_of(ComparisonConfig, arguments, _DESCRIPTION, _FLAGS, _VALUES, _overrides)
    if given:
        config, parsed = given
        _report(config, parsed.json)


def _overrides(given: Mapping[str, Any]) -> list[str]:
    """The settings that the command's own options stand for."""
    overrides = []
    for flag, key in _VALUES.items():
        value = given[flag.removeprefix("--")]
        if value is not None:
            listed = f"[{value.strip('[]')}]" if flag == "--ways" else value
            overrides.append(f"--{key}={listed}")
    return overrides + [f"--{key}=true" for flag, key in _SWITCHES.items() if given[flag.removeprefix("--")]]


def _report(config: object, is_json: bool) -> None:
    from ptuning.comparison import compare
    from ptuning.config import ComparisonConfig

    assert isinstance(config, ComparisonConfig)
    comparison = compare(config)
    if is_json:
        print(json.dumps(comparison.as_dict()))
        return
    print("\n".join(comparison.lines()))
    print(f"written: {', '.join(str(comparison.directory / f'comparison.{kind}') for kind in ('html', 'json', 'csv'))}")
