"""A training run's config: its sections, and what contradicts across them.

Knows nothing of how a config is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ptuning.config.reading import WholeConfig
from ptuning.config.sections import DataConfig, ModelConfig, PromptConfig, TrainConfig
from ptuning.errors import ConfigError


@dataclass(frozen=True)
class RunConfig(WholeConfig):
    """A whole run, as written in a YAML file."""

    model: ModelConfig
    prompt: PromptConfig
    data: DataConfig
    train: TrainConfig

    command: ClassVar[str] = "ptuning train"
    """The command whose help lists the settings."""

    def __post_init__(self) -> None:
        ConfigError.raise_any(self.contradictions(self))

    @staticmethod
    def contradictions(sections: Any) -> list[ConfigError]:
        """What contradicts across sections; they are attributes of `sections`, their settings attributes of them."""
        prompt, data, train = sections.prompt, sections.data, sections.train
        needs_verbalizer = {"prompt.init: labels": prompt.init == "labels"}
        with_patience = {"train.early_stopping_patience": train.early_stopping_patience not in (None, "auto")}
        by_accuracy = {"train.metric_for_best_model: accuracy": train.metric_for_best_model == "accuracy"}
        balanced = {"train.balanced_sampling: true": train.balanced_sampling}
        problems = _missing(needs_verbalizer | by_accuracy | balanced, "data.verbalizer", data.verbalizer)
        if data.validation is None and data.validation_split == 0:
            problems += _without_validation(by_accuracy | with_patience)
        if prompt.encoder == "conditioned" and train.readability > 0:
            problems.append(
                ConfigError(
                    f"train.readability: {train.readability} with prompt.encoder: conditioned",
                    "an encoder whose prompt is the same for all rows",
                    "Choose another encoder, or set train.readability to 0",
                    keys=("train.readability", "prompt.encoder"),
                )
            )
        if train.forward == "shared_prefix":
            problems += _without_shared_prefix(prompt, data, train)
        return problems


def _missing(needed_by: Mapping[str, bool], key: str, value: Any) -> list[ConfigError]:
    """The settings that are on and need another that is not given."""
    return [
        ConfigError(
            f"{setting} without {key}",
            f"{key} with it",
            f"Add {key}, or change {setting}",
            keys=(setting.partition(":")[0], key),
        )
        for setting, is_on in needed_by.items()
        if is_on and value is None
    ]


def _without_validation(needed_by: Mapping[str, bool]) -> list[ConfigError]:
    """The settings that are on and need validation rows."""
    return [
        ConfigError(
            f"{setting} without data.validation and with data.validation_split: 0",
            "validation rows with it",
            f"Add data.validation, raise data.validation_split, or change {setting}",
            keys=(setting.partition(":")[0], "data.validation", "data.validation_split"),
        )
        for setting, is_on in needed_by.items()
        if is_on
    ]


def _without_shared_prefix(prompt: Any, data: Any, train: Any) -> list[ConfigError]:
    """The settings that forward: shared_prefix cannot serve."""
    remedy, problems = "Set train.forward to auto", []
    if not data.template.startswith("{prompt:"):
        problems.append(
            ConfigError(
                f"train.forward: shared_prefix with template {data.template!r}",
                "a template that begins with a prompt slot",
                remedy,
                keys=("train.forward", "data.template"),
            )
        )
    for is_on, key, value in (
        (prompt.encoder == "conditioned", "prompt.encoder", "conditioned"),
        (train.gradient_checkpointing, "train.gradient_checkpointing", "true"),
    ):
        if is_on:
            received = f"train.forward: shared_prefix with {key}: {value}"
            problems.append(
                ConfigError(received, "rows that are run whole", remedy, keys=("train.forward", key)),
            )
    return problems
