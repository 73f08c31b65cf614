"""The settings of a run: frozen dataclasses, read from YAML and dotted command-line overrides.

Knows nothing of models, data or training. Every mistake in a config is found and reported at once.
"""

import dataclasses
import difflib
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from ptuning.config.reading import of_overrides, of_yaml
from ptuning.data import Task, Template
from ptuning.errors import ConfigError

Section = TypeVar("Section")
_STAND_IN = "{prompt:1}"  # for a setting that is missing: nothing else is wrong because of it


@dataclass(frozen=True)
class ModelConfig:
    """The frozen language model."""

    name_or_path: str
    """A model directory, or a model's name on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the frozen model; auto: bfloat16 where the hardware computes in it, float32 elsewhere."""
    device: str = "auto"
    """auto: the first accelerator if there is one; or cpu, cuda, cuda:1, mps."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run on this machine."""
    quantization: Literal["none", "int8"] = "none"
    """int8: the frozen weights of linear layers as 8-bit whole numbers, a quarter of float32's memory (torchao)."""


@dataclass(frozen=True)
class PromptConfig:
    """The trainable part and where it starts."""

    encoder: Literal["embedding", "mlp", "lstm", "residual", "conditioned"] = "residual"
    """embedding: free vectors (Lester 2021); mlp, lstm: P-tuning (Liu 2021); residual: Razdaibiedina 2023;
    conditioned: reads each row's text and makes the row's own prompt."""
    hidden_size: int | None = None
    """Width of the encoder's hidden layers; null: the encoder's own default."""
    init: Literal["vocabulary", "text", "labels", "prompt", "random"] = "vocabulary"
    """Where the virtual tokens start: frequent tokens, a text, the label words, a saved prompt, or at random."""
    init_text: str | None = None
    """The text of init: text."""
    init_prompt: str | None = None
    """The saved prompt's directory of init: prompt."""

    def __post_init__(self) -> None:
        problems = _not_positive("prompt", self, "hidden_size")
        for kind, key in (("text", "init_text"), ("prompt", "init_prompt")):
            value = getattr(self, key)
            if (self.init == kind) != bool(value):
                problems.append(
                    ConfigError(
                        f"prompt.init: {self.init} with prompt.{key}: {value!r}",
                        f"prompt.{key} with prompt.init: {kind}, and only then",
                        f"Set both or neither of prompt.init: {kind} and prompt.{key}",
                    )
                )
        if self.encoder == "embedding" and self.hidden_size is not None:
            problems.append(
                ConfigError(
                    f"prompt.encoder: embedding with prompt.hidden_size: {self.hidden_size}",
                    "hidden_size only with another encoder",
                    "Remove prompt.hidden_size",
                )
            )
        _raise_all(problems)


@dataclass(frozen=True)
class DataConfig:
    """The rows and how they become text."""

    train: str
    """csv, tsv, json(l) or parquet file, or a hub data set (org/name or org/name:subset, this key's split)."""
    template: str
    """The text before the answer, with a slot for the soft prompt: "{prompt:20}Review: {text}\\nSentiment:"."""
    validation: str | None = None
    """Rows to choose the best checkpoint by; same forms as train."""
    test: str | None = None
    """Rows to report at the end, with and without the soft prompt; same forms as train."""
    answer: str = "{label}"
    """The answer's column; with a verbalizer its values are looked up there."""
    verbalizer: dict[str, str] | None = None
    """Label -> the text that stands for it, leading space included where one is wanted; null: text to generate."""
    chat_template: bool = False
    """Whether the text is the user's turn of the model's own chat template."""
    max_length: int | None = 512
    """Tokens a row may have, prompt and answer included; longer rows lose the end of their text field."""

    def __post_init__(self) -> None:
        problems = _not_positive("data", self, "max_length")
        try:
            Template.parse(self.task.template).require_slot()
        except ConfigError as error:
            problems.append(error)
        _raise_all(problems)

    @property
    def task(self) -> Task:
        """How a row becomes a question and its answer."""
        return Task(self.template, self.answer, self.verbalizer, self.chat_template, self.max_length)


@dataclass(frozen=True)
class TrainConfig:
    """The run."""

    output_dir: str
    """Where the prompt, the checkpoints, the config and the metrics are written."""
    max_steps: int | None = None
    """Optimizer steps; null: num_train_epochs decides."""
    num_train_epochs: float = 3.0
    """Passes over the training rows, where max_steps is not given."""
    per_device_train_batch_size: int = 8
    """Rows a device reads at once in training."""
    max_batch_tokens: int | None = None
    """Tokens a device reads at once, padding and virtual tokens included: bounds memory, whatever the batch size; null:
    no limit."""
    per_device_eval_batch_size: int = 32
    """Rows a device reads at once in evaluation."""
    gradient_accumulation_steps: int = 1
    """Batches whose gradients are added up before a step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    max_grad_norm: float = 1.0
    """The gradient's norm is clipped to this."""
    eval_steps: int = 100
    """Steps between evaluations on the validation rows."""
    max_eval_samples: int | None = None
    """Validation rows used while training, a fixed random choice; null: a tenth as many as are trained on between two
    evaluations, and at least 50."""
    metric_for_best_model: Literal["loss", "accuracy"] = "loss"
    """What the best checkpoint is best at on the validation rows."""
    early_stopping_patience: int | None = None
    """Evaluations without improvement after which training ends; null: never."""
    save_steps: int = 100
    """Steps between checkpoints."""
    logging_steps: int = 5
    """Steps between lines of metrics.jsonl."""
    report_to: Literal["none", "tensorboard"] = "none"
    """Where the metrics go besides metrics.jsonl."""
    gradient_checkpointing: bool = False
    """Whether layers are run again in the backward pass instead of keeping what they computed: less memory, slower."""
    forward: Literal["auto", "splice", "shared_prefix"] = "auto"
    """splice: the reference; shared_prefix: what the rows begin with is run once a step, and they stand end to end
    behind it; auto: the fast one where it is exact."""
    seed: int = 0
    """Seed of the initialisation and the data order."""

    def __post_init__(self) -> None:
        problems = _not_positive(
            "train",
            self,
            *("max_steps", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size"),
            *("gradient_accumulation_steps", "learning_rate", "max_grad_norm", "eval_steps", "max_eval_samples"),
            "max_batch_tokens",
            *("early_stopping_patience", "save_steps", "logging_steps"),
        )
        if not self.weight_decay >= 0:
            problems.append(ConfigError(f"train.weight_decay: {self.weight_decay}", "at least 0", "Raise it"))
        if not 0 <= self.warmup_ratio <= 1:
            problems.append(ConfigError(f"train.warmup_ratio: {self.warmup_ratio}", "from 0 to 1", "Correct it"))
        _raise_all(problems)


@dataclass(frozen=True)
class RunConfig:
    """A whole run, as written in a YAML file."""

    model: ModelConfig
    prompt: PromptConfig
    data: DataConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        _raise_all(_contradictions(self.prompt, self.data, self.train))

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> "RunConfig":
        """Reads a config file.

        Args:
            path: A YAML file with the sections model, prompt, data and train.
            overrides: Dotted settings that win over the file's, as on the command line: `--train.max_steps 50` or
                `--train.max_steps=50`.

        Raises:
            ConfigError: With everything that is wrong with the settings, in one line.
        """
        settings = {**of_yaml(Path(path)), **of_overrides(overrides)}
        return cls.from_settings(settings, str(path))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], source: str = "the settings") -> "RunConfig":
        """Builds a config from dotted keys (`{"train.max_steps": 50, …}`); raises `ConfigError` like `from_yaml`."""
        values, problems = _checked(settings)
        wrong = [key for key in settings if key not in values]
        sections, drafts, found = {}, {}, list[ConfigError]()
        for field in dataclasses.fields(cls):
            kind = cast(type[Any], field.type)
            given, own = _section(settings, field.name), _section(values, field.name)
            missing = [key for key in _required_keys(kind) if key not in own]
            problems += [
                ConfigError(f"no {field.name}.{key}", "a value for it", f"Write {field.name}.{key} in the config")
                for key in missing
                if key not in given
            ]
            own.update(dict.fromkeys(missing, _STAND_IN))
            sections[field.name] = _collect(found, kind, own)
            drafts[field.name] = SimpleNamespace(**{**defaults(kind), **given, **own})
        found += _contradictions(drafts["prompt"], drafts["data"], drafts["train"])
        problems += [each for each in found if not any(f"{key}:" in each.received for key in wrong)]
        if problems:
            raise ConfigError.together(problems, source)
        return cls(**cast(dict[str, Any], sections))

    def to_yaml(self) -> str:
        """The config whole, defaults written out."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)


def _contradictions(prompt: Any, data: Any, train: Any) -> list[ConfigError]:
    """What contradicts across sections, each given as a section or anything with its settings as attributes."""
    needs = (
        (prompt.init == "labels", "prompt.init: labels", "verbalizer"),
        (train.metric_for_best_model == "accuracy", "train.metric_for_best_model: accuracy", "verbalizer"),
        (train.metric_for_best_model == "accuracy", "train.metric_for_best_model: accuracy", "validation"),
        (train.early_stopping_patience is not None, "train.early_stopping_patience", "validation"),
    )
    problems = [
        ConfigError(f"{setting} without data.{key}", f"data.{key} with it", f"Add data.{key}, or change {setting}")
        for is_set, setting, key in needs
        if is_set and getattr(data, key) is None
    ]
    if train.forward == "shared_prefix" and not str(data.template).startswith("{prompt:"):
        problems.append(
            ConfigError(
                f"train.forward: shared_prefix with template {data.template!r}",
                "a template that begins with a prompt slot",
                "Set train.forward to auto",
            )
        )
    for is_set, setting in (
        (prompt.encoder == "conditioned", "prompt.encoder: conditioned"),
        (train.gradient_checkpointing, "train.gradient_checkpointing: true"),
    ):
        if is_set and train.forward == "shared_prefix":
            received = f"train.forward: shared_prefix with {setting}"
            problems.append(ConfigError(received, "rows that are run whole", "Set train.forward to auto"))
    return problems


def _not_positive(section: str, values: Any, *keys: str) -> list[ConfigError]:
    """The settings that are given and not above 0."""
    given = {key: getattr(values, key) for key in keys if getattr(values, key) is not None}
    return [
        ConfigError(f"{section}.{key}: {value}", "a number above 0", "Correct it")
        for key, value in given.items()
        if not 0 < value < float("inf")
    ]


def _raise_all(problems: Sequence[ConfigError]) -> None:
    if problems:
        raise ConfigError.together(problems, "the config")


def parser() -> ArgumentParser:
    """The jsonargparse parser of `RunConfig`'s settings: types, defaults and help."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    built = ArgumentParser(
        prog="ptuning train", exit_on_error=False, description="Train a soft prompt.", print_config=None
    )
    built.add_argument("--config", help="the run's YAML file", metavar="FILE")
    built.add_argument("--resume", action="store_true", help="go on from the last checkpoint, exactly")
    built.add_argument("--print_config", action="store_true", help="print the config whole, defaults too, and end")
    built.add_class_arguments(RunConfig)
    sections = {f"--{field.name}" for field in dataclasses.fields(RunConfig)}
    for action in built._actions:  # a section is written in the config file, not given as a file of its own
        if sections & set(action.option_strings):
            action.help = SUPPRESS
    return built


def _checked(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[ConfigError]]:
    """The settings with their types applied, and what is wrong with the others."""
    types = {
        f"{section.name}.{field.name}": field.type
        for section in dataclasses.fields(RunConfig)
        for field in dataclasses.fields(cast(Any, section.type))
    }
    by_name = {key.partition(".")[2]: key for key in types}
    values, problems = {}, []
    for key, value in settings.items():
        if key not in types:
            close = difflib.get_close_matches(key.rpartition(".")[2], by_name, n=1)
            expected = by_name[close[0]] if close else "a setting that ptuning train --help shows"
            problems.append(ConfigError(f"unknown setting {key}", expected, "Correct or remove it"))
            continue
        try:
            values[key] = _typed(key, types[key], value)
        except ConfigError as error:
            problems.append(error)
    return values, problems


def _typed(key: str, kind: Any, value: Any) -> Any:
    """The value of a setting of that type; raises `ConfigError` where it is none."""
    wrong = ConfigError(f"{key}: {value!r}", _type_name(kind), "Correct its type or value")
    leaf = ArgumentParser(exit_on_error=False)
    leaf.add_argument("--value", type=kind)
    try:
        typed = leaf.parse_object({"value": value}).value
    except ArgumentError:
        raise wrong from None
    if typed is None and type(None) not in get_args(kind):
        raise wrong
    return _with_text_keys(key, typed) if isinstance(typed, dict) else typed


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("None", "null")


def _with_text_keys(key: str, mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """The mapping with whole numbers as their digits, as in the rows; YAML reads yes, no, on and off as true, false."""
    for name in mapping:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise ConfigError(f"{key}: the unquoted key {name!r}", "text or whole numbers as keys", "Put it in quotes")
    return {str(name): value for name, value in mapping.items()}


def _section(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of a section, without its name before them."""
    return {key.partition(".")[2]: value for key, value in settings.items() if key.startswith(f"{name}.")}


def defaults(section: Any) -> dict[str, Any]:
    """The settings of a section that have a default, and what it is."""
    return {
        field.name: field.default for field in dataclasses.fields(section) if field.default is not dataclasses.MISSING
    }


def _required_keys(section: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(section) if field.default is dataclasses.MISSING]


def _collect(problems: list[ConfigError], kind: type[Section], values: Mapping[str, Any]) -> Section | None:
    """Builds a section, or notes what is wrong with it."""
    try:
        return kind(**values)
    except ConfigError as error:
        problems.append(error)
        return None
