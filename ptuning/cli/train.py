"""`ptuning train`."""

from typing import Any

from ptuning.cli.arguments import config_of

_DESCRIPTION = "Train a soft prompt."
_FLAGS = {
    "--resume": "continue exactly from the last checkpoint",
    "--print-config": "print the whole config, defaults included, and stop",
}


def run(arguments: list[str]) -> None:
    """Trains, or prints the help or the config."""
    from ptuning.config import RunConfig

    given = config_of(RunConfig, arguments, _DESCRIPTION, _FLAGS)
    if given:
        config, parsed = given
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
