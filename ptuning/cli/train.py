"""`ptuning train`."""

from typing import Any

from ptuning.cli.arguments import Parser
from ptuning.errors import ConfigError

_DESCRIPTION = "Train a soft prompt."
_FLAGS = {
    "--resume": "continue exactly from the last checkpoint",
    "--print-config": "print the whole config, defaults included, and stop",
}


def run(arguments: list[str]) -> None:
    """Trains, or prints the help or the config."""
    from ptuning.config import RunConfig, parser

    flags = Parser(prog="ptuning train", add_help=False, allow_abbrev=False)
    flags.add_argument("--config")
    flags.add_argument("--resume", action="store_true")
    parsed, overrides = flags.parse_known_args(arguments)
    if {"-h", "--help"} & set(overrides):
        parser(RunConfig, _DESCRIPTION, _FLAGS).print_help()
        return
    print_config = "--print-config" in overrides
    overrides = [each for each in overrides if each != "--print-config"]
    if parsed.config is None:
        raise ConfigError("ptuning train without --config", "a config file", "See configs/ for examples")
    config = RunConfig.from_yaml(parsed.config, overrides)
    if print_config:
        print(config.to_yaml(), end="")
        return
    _report(config, parsed.resume)


def _report(config: Any, resume: bool) -> None:
    from accelerate import PartialState

    from ptuning.prompts import results_table
    from ptuning.training import train

    is_main_process = PartialState(cpu=config.model.device == "cpu").is_main_process
    result = train(config, resume)
    if not is_main_process:
        return
    metrics = result.metrics
    if metrics["results"]:
        print(f"results on the {metrics['training'].get('results_of', str(metrics['split']) + ' rows')}:")
    for line in results_table(metrics["results"]):
        print(line)
    training = metrics["training"]
    if training.get("best_step", training["steps"]) != training["steps"]:
        print(f"kept: the prompt of step {training['best_step']:,} of {training['steps']:,}, by the validation rows")
    print(f"saved: {result.directory}")
    if result.prompt.not_peft:
        print(result.prompt.not_peft)
