"""A comparison's config: a training run's sections, and one on what is compared and what for.

Knows nothing of how a config is read, or of how a way is fitted.
"""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ptuning.config.reading import WholeConfig
from ptuning.config.run import RunConfig
from ptuning.config.sections import DataConfig, ModelConfig, PromptConfig, TrainConfig
from ptuning.errors import ConfigError

_MOST = {"seeds": 20, "rates": 5, "demonstrations": 256}
_UNITS = {"s": 1, "m": 60, "h": 3600}
_DURATION = re.compile(r"\d{1,6}(\.\d{1,3})?[smh]", re.ASCII)


@dataclass(frozen=True)
class CompareConfig:
    """What is compared, and what the answer is needed for."""

    ways: list[str] | None = None
    """The ways to compare, by name; null: all of them."""
    instruction: str | None = None
    """What a person would write in front of each row; null: the way `instruction` is left out."""
    documents: str | None = None
    """A folder of .txt and .md files, or a table of passages with a column `text`; null: the way `documents` is left
    out."""
    demonstrations: int | None = None
    """The most labelled rows that stand in a text, of which a half and a quarter are tried too; null: 16."""
    seeds: int = 3
    """How often a way that depends on chance is repeated."""
    budget: str | None = None
    """Time to fit each way with one seed, such as 90s, 10m or 1h: as many steps and alternatives as fit into it, and at
    most 30 passes over the training rows; zero-shot, instruction, tf-idf and features take what they take. null: the
    steps of the train section."""
    rates: int = 1
    """Learning rates that each trained way tries, the same number for all; the validation rows choose."""
    curve: bool = False
    """Whether each way that reads training rows is also repeated with 16, 64 and 256 of them."""
    save_weights: bool = False
    """Whether last-block and all-weights save the weights that they changed, so that load_way can bring them back; they
    can be larger than all else together."""
    general_text: str | None = None
    """A file of plain text on which it is measured what ways that change weights forget; null: a text of ptuning's."""
    quick: bool = False
    """Whether less is done: 1 seed, at most 60 steps (unless there is a budget), 2 draws, 2 or 4 demonstrations, 1 or 2
    passages, 4 evaluations, no verdict on soft prompts, and at most 500 training, 50 validation and 200 test rows."""
    least_accuracy: float | None = None
    """The accuracy that is needed, or the character F1 where texts are written; null: the best there is."""
    most_milliseconds: float | None = None
    """The longest time that one request may take, in milliseconds; null: any."""
    data_changes_often: bool = False
    """Whether new rows must count at once, without training again."""
    many_tasks: bool = False
    """Whether one copy of the base is to serve many tasks."""
    readable: bool = False
    """Whether a person must be able to read what makes the answers."""

    @property
    def budget_seconds(self) -> float | None:
        """The budget in seconds."""
        return None if self.budget is None else float(self.budget[:-1]) * _UNITS[self.budget[-1]]

    def __post_init__(self) -> None:
        problems = []
        if self.budget is not None and not (_DURATION.fullmatch(self.budget) and self.budget_seconds):
            received, key = f"compare.budget: {self.budget}", "compare.budget"
            problems.append(ConfigError(received, "a time such as 90s, 10m or 1h", "Correct it", keys=(key,)))
        for name, most in _MOST.items():
            value, key = getattr(self, name), f"compare.{name}"
            if value is not None and not 1 <= value <= most:
                problems.append(ConfigError(f"{key}: {value}", f"from 1 to {most}", "Correct it", keys=(key,)))
        if self.least_accuracy is not None and not 0 <= self.least_accuracy <= 1:
            received, key = f"compare.least_accuracy: {self.least_accuracy}", "compare.least_accuracy"
            problems.append(ConfigError(received, "from 0 to 1", "Correct it", keys=(key,)))
        if self.most_milliseconds is not None and not self.most_milliseconds > 0:
            received, key = f"compare.most_milliseconds: {self.most_milliseconds}", "compare.most_milliseconds"
            problems.append(ConfigError(received, "a number above 0", "Correct it", keys=(key,)))
        ConfigError.raise_any(problems)


@dataclass(frozen=True)
class ComparisonConfig(WholeConfig):
    """A whole comparison, as written in a YAML file; the config of a training run is one too."""

    model: ModelConfig
    prompt: PromptConfig
    data: DataConfig
    train: TrainConfig
    compare: CompareConfig = field(default_factory=CompareConfig)

    command: ClassVar[str] = "ptuning compare"
    """The command whose help lists the settings."""

    def __post_init__(self) -> None:
        ConfigError.raise_any(self.contradictions(self))

    @classmethod
    def of_run(cls, config: RunConfig) -> "ComparisonConfig":
        """The comparison that belongs to a training run's config, by the defaults."""
        return cls(config.model, config.prompt, config.data, config.train)

    @property
    def run(self) -> RunConfig:
        """The training run's part of it."""
        return RunConfig(self.model, self.prompt, self.data, self.train)

    @staticmethod
    def contradictions(sections: Any) -> list[ConfigError]:
        """What contradicts across sections, as in `RunConfig.contradictions`."""
        return RunConfig.contradictions(sections)
