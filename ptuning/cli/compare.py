"""`ptuning compare`."""

import json

from ptuning.cli.arguments import Parser
from ptuning.errors import ConfigError

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
    from ptuning.config import ComparisonConfig, parser

    flags = Parser(prog="ptuning compare", add_help=False, allow_abbrev=False)
    flags.add_argument("--config")
    for flag in _VALUES:
        flags.add_argument(flag)
    for flag in (*_SWITCHES, "--json", "--print-config"):
        flags.add_argument(flag, action="store_true")
    parsed, overrides = flags.parse_known_args(arguments)
    if {"-h", "--help"} & set(overrides):
        parser(ComparisonConfig, _DESCRIPTION, _FLAGS).print_help()
        return
    if parsed.config is None:
        raise ConfigError("ptuning compare without --config", "a config file", "See configs/ for examples")
    given = vars(parsed)
    for flag, key in _VALUES.items():
        value = given[flag.removeprefix("--")]
        if value is not None:
            listed = f"[{value.strip('[]')}]" if flag == "--ways" else value
            overrides.append(f"--{key}={listed}")
    overrides += [f"--{key}=true" for flag, key in _SWITCHES.items() if given[flag.removeprefix("--")]]
    config = ComparisonConfig.from_yaml(parsed.config, overrides)
    if parsed.print_config:
        print(config.to_yaml(), end="")
        return
    _report(config, parsed.json)


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
