"""Configs: defaults, YAML, overrides, and everything that can be wrong with them."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

from ptuning.cli.main import main
from ptuning.comparison.run import compare
from ptuning.config.comparison import ComparisonConfig
from ptuning.config.distillation import DistillationConfig
from ptuning.config.run import RunConfig
from ptuning.config.sections import DataConfig, ModelConfig, PromptConfig, TrainConfig
from ptuning.errors import ConfigError
from ptuning.training.run import train

MINIMAL = {
    "model.name_or_path": "model",
    "data.train": "train.csv",
    "data.template": "{prompt:4}{text}",
    "train.output_dir": "run",
}
LABELS = {"x": " x", "y": " y"}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    """A config with nothing but what must be written."""
    return write(
        tmp_path / "config.yaml",
        """
model: {name_or_path: model}
data: {train: train.csv, template: "{prompt:4}{text}"}
train: {output_dir: run}
""",
    )


# Reading


def test_what_is_not_written_has_a_default(minimal: Path) -> None:
    assert RunConfig.from_yaml(minimal) == RunConfig(
        ModelConfig("model"), PromptConfig(), DataConfig("train.csv", template="{prompt:4}{text}"), TrainConfig("run")
    )


def test_settings_may_be_nested_as_in_yaml() -> None:
    nested = {
        "model": {"name_or_path": "model"},
        "data": {"train": "train.csv", "template": "{prompt:4}{text}", "verbalizer": LABELS},
        "train": {"output_dir": "run"},
    }
    flat = RunConfig.from_settings({**MINIMAL, "data.verbalizer": LABELS})
    assert RunConfig.from_settings(nested) == flat
    assert RunConfig.from_settings({**nested, "train": {"output_dir": "b"}, "train.seed": 3}).train.seed == 3
    with pytest.raises(ConfigError, match=r"unknown setting train\.lr; expected train\.learning_rate"):
        RunConfig.from_settings({**nested, "train": {"output_dir": "run", "lr": 1}})


def test_what_is_written_wins_over_defaults_and_overrides_win_over_both(minimal: Path) -> None:
    text = minimal.read_text().replace("output_dir: run", "output_dir: run, max_steps: 7, seed: 3")
    config = RunConfig.from_yaml(
        write(minimal, text + "prompt: {encoder: lstm}\n"),
        ["--train.max_steps", "50", "--data.max_length=null", "--train.output_dir=a=b", "--model.dtype", "bfloat16"],
    )
    assert (config.train.max_steps, config.train.seed, config.train.output_dir) == (50, 3, "a=b")
    assert (config.data.max_length, config.prompt.encoder, config.model.dtype) == (None, "lstm", "bfloat16")


def test_an_override_may_hold_a_mapping_and_a_negative_number(minimal: Path) -> None:
    config = RunConfig.from_yaml(minimal, ["--data.verbalizer", '{x: " x", y: " y"}', "--train.weight_decay", "3e-2"])
    assert config.data.verbalizer == LABELS
    assert config.train.weight_decay == 0.03
    with pytest.raises(ConfigError, match=r"train.seed: -3; expected from 0 to 4,294,967,295"):
        RunConfig.from_yaml(minimal, ["--train.seed", "-3"])


def test_numbers_in_scientific_notation_need_no_dot(minimal: Path) -> None:
    text = minimal.read_text().replace("output_dir: run", "output_dir: run, learning_rate: 1e-3, weight_decay: 1E-2")
    train = RunConfig.from_yaml(write(minimal, text), ["--train.max_grad_norm", "2e1"]).train
    assert (train.learning_rate, train.weight_decay, train.max_grad_norm) == (0.001, 0.01, 20.0)


@pytest.mark.parametrize("text", ["5", "null", "yes", "- a", "a: b", "[x", "1e3", " {label} # no comment"])
def test_text_settings_stay_text_on_the_command_line(minimal: Path, text: str) -> None:
    assert RunConfig.from_yaml(minimal, ["--data.answer", text]).data.answer == text


def test_a_date_stays_text_in_a_file(minimal: Path) -> None:
    text = minimal.read_text().replace("{name_or_path: model}", "{name_or_path: model, revision: 2024-01-01}")
    assert RunConfig.from_yaml(write(minimal, text)).model.revision == "2024-01-01"


def test_labels_may_be_written_as_whole_numbers(minimal: Path) -> None:
    text = minimal.read_text().replace("{train: train.csv,", '{verbalizer: {0: " x", 1: " y"}, train: train.csv,')
    assert RunConfig.from_yaml(write(minimal, text)).data.verbalizer == {"0": " x", "1": " y"}
    override = ["--data.verbalizer", '{2: " x", 3: " y"}']
    assert RunConfig.from_yaml(minimal, override).data.verbalizer == {"2": " x", "3": " y"}


def test_a_section_may_be_left_empty(minimal: Path) -> None:
    assert RunConfig.from_yaml(write(minimal, minimal.read_text() + "prompt:\n")).prompt == PromptConfig()


def test_a_config_written_out_reads_back_the_same(tmp_path: Path) -> None:
    config = RunConfig(
        ModelConfig("modèle", revision="v1", dtype="float16", device="cpu"),
        PromptConfig("mlp", 64, "text", "Classify: a\nb"),
        DataConfig(
            "a.csv",
            "b.csv",
            template="{prompt:4}x: {text}\n{{y}}:",
            verbalizer={"no": " no", "1": " 1e3"},
            max_length=9,
        ),
        TrainConfig("run", 7, learning_rate=1e-5, metric_for_best_model="accuracy", early_stopping_patience=2),
    )
    assert RunConfig.from_yaml(write(tmp_path / "c.yaml", config.to_yaml())) == config
    assert set(yaml.safe_load(config.to_yaml())) == {"model", "prompt", "data", "train"}


RECIPES = sorted((REPOSITORY / "configs").glob("*.yaml"))
COMPARISONS = [path for path in RECIPES if path.name.startswith("compare_")]
DISTILLATIONS = [path for path in RECIPES if path.name.startswith("distill_")]
RUNS = [path for path in RECIPES if path not in COMPARISONS + DISTILLATIONS]
COMMANDS = {
    **dict.fromkeys(RUNS, ("train", RunConfig)),
    **dict.fromkeys(COMPARISONS, ("compare", ComparisonConfig)),
    **dict.fromkeys(DISTILLATIONS, ("distill", DistillationConfig)),
}


def test_the_recipes_can_be_read_and_begin_with_their_launch_command() -> None:
    assert RUNS
    assert COMPARISONS
    assert DISTILLATIONS
    for path in RECIPES:
        command, kind = COMMANDS[path]
        assert path.read_text().splitlines()[0] == f"# ptuning {command} --config configs/{path.name}"
        assert isinstance(kind.from_yaml(path), kind)


@pytest.mark.parametrize("recipe", RUNS, ids=lambda path: path.stem)
def test_the_recipes_run_a_step_on_a_tiny_model(recipe: Path, run_config: Path, model_directory: Path) -> None:
    here = run_config.parent
    data = [f"--data.{split}={here}/{split}.csv" for split in ("train", "validation", "test")]
    small = ["--model.name_or_path", str(model_directory), "--train.max_steps=1", f"--train.output_dir={here}/recipe"]
    assert train(RunConfig.from_yaml(recipe, [*data, *small])).prompt.num_virtual_tokens == 20


@pytest.mark.parametrize("recipe", COMPARISONS, ids=lambda path: path.stem)
def test_the_comparisons_run_two_ways_on_a_tiny_model(recipe: Path, run_config: Path, model_directory: Path) -> None:
    here = run_config.parent
    data = [f"--data.{split}={here}/{split}.csv" for split in ("train", "validation", "test")]
    words = "{negative: ' negative', positive: ' positive'}"
    small = ["--model.name_or_path", str(model_directory), f"--train.output_dir={here}/recipe"]
    few = ["--compare.ways=[zero-shot, instruction]", "--compare.quick=true"]
    if ComparisonConfig.from_yaml(recipe).data.verbalizer:
        few.append(f"--data.verbalizer={words}")
    found = compare(ComparisonConfig.from_yaml(recipe, [*data, *small, *few]), verbose=False)
    assert found.results.names == ["zero-shot", "instruction"]


def test_the_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    fields = {
        f"--{section.name}.{field.name}": field
        for section in dataclasses.fields(RunConfig)
        for field in dataclasses.fields(section.type)  # type: ignore[arg-type]
    }
    assert len(fields) > 30
    for name in fields:
        assert f"{name} " in text
    assert "--train CONFIG" not in text
    assert "AdamW's weight decay." in text
    assert "--resume continue exactly from the last checkpoint" in text


# Files that are no configs


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("model: {name_or_path: [", r"c.yaml is not YAML \(while parsing .*; expected a YAML file. Correct its syntax"),
        ("model:\n\tname_or_path: a", r"c.yaml is not YAML \(.*cannot start any token"),
        (b"\xff\xfe\x00model", r"c.yaml is not YAML \('utf-8' codec can't decode"),
        ("- a\n- b", "c.yaml holds list, not sections; expected the sections model, prompt, data and train"),
        ("", "c.yaml holds NoneType, not sections"),
    ],
)
def test_a_file_that_is_no_yaml_of_sections_is_refused(tmp_path: Path, content: str | bytes, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        RunConfig.from_yaml(write(tmp_path / "c.yaml", content))


def test_a_missing_file_or_a_directory_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=f"config file {path} does not exist; .*path given to --config"):
            RunConfig.from_yaml(path)


def test_a_file_that_may_not_be_read_is_refused(minimal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match=r"config.yaml cannot be read \(Permission denied\); expected a YAML file"):
        RunConfig.from_yaml(minimal)


BOMBS = {
    "more than 20 levels or 20 aliases": "a: &a [x]\n" + "".join(f"b{i}: [*a, *a]\n" for i in range(11)),
    "more than 20 levels or 20 aliases ": "a: " + "[" * 1000 + "]" * 1000,
    "the alias a within itself": "train: &a\n  b: *a\n",
    "has 1,048,577 bytes; expected a YAML file": "#" * (2**20 + 1),
    "is not YAML .*4300 digits": "train: {seed: " + "9" * 5000 + "}",
}


@pytest.mark.parametrize("told", BOMBS)
def test_yaml_that_would_grow_or_never_end_is_refused(tmp_path: Path, told: str) -> None:
    (tmp_path / "config.yaml").write_text(BOMBS[told])
    with pytest.raises(ConfigError, match=told.strip()):
        RunConfig.from_yaml(tmp_path / "config.yaml")


# Settings


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"train.max_step": 1}, "unknown setting train.max_step; expected train.max_steps. Correct or remove it"),
        ({"train.zzz": 1}, "unknown setting train.zzz; expected a setting that ptuning train --help shows"),
        ({"trainer.max_steps": 1}, "unknown setting trainer.max_steps; expected train.max_steps"),
        ({"max_steps": 1}, "unknown setting max_steps; expected train.max_steps"),
        ({"model": "gpt2"}, "unknown setting model; expected"),
        ({"train.max_steps": "many"}, r"train.max_steps: 'many'; expected int \| null. Correct its type or value"),
        ({"train.max_steps": 1.5}, "train.max_steps: 1.5; expected int"),
        ({"train.max_steps": True}, "train.max_steps: True; expected int"),
        ({"train.seed": None}, "train.seed: None; expected int"),
        ({"train.output_dir": None}, "train.output_dir: None; expected str"),
        ({"train.output_dir": ["a"]}, "train.output_dir: .*; expected str"),
        ({"train.learning_rate": "fast"}, "train.learning_rate: 'fast'; expected float"),
        ({"prompt.encoder": "gru"}, "prompt.encoder: 'gru'; expected one of embedding, mlp, lstm, residual"),
        (
            {"data.verbalizer": {"x": 1, "y": 2}},
            r"data.verbalizer: {'x': 1, 'y': 2}; expected dict\[str, str\] \| null",
        ),
        ({"data.verbalizer": {True: " y", False: " n"}}, "data.verbalizer: the unquoted key True; .*Put it in quotes"),
        ({"data.verbalizer": {None: " y", "a": " n"}}, "data.verbalizer: the unquoted key None"),
        ({"data.chat_template": 1}, "data.chat_template: 1; expected bool"),
    ],
)
def test_an_unknown_setting_or_a_wrong_type_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=f"^the settings: {match}"):
        RunConfig.from_settings({**MINIMAL, **settings})


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.lr", "train.learning_rate"),
        ("train.epochs", "train.num_train_epochs"),
        ("train.batch_size", "train.per_device_train_batch_size"),
        ("train.max_lenght", "data.max_length"),
        ("data.labels", "a setting that ptuning train --help shows"),
    ],
)
def test_an_unknown_setting_is_told_beside_what_it_probably_means(key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting {key}; expected {meant}"):
        RunConfig.from_settings({**MINIMAL, key: "1"})


@pytest.mark.parametrize("key", [key for key in MINIMAL if key != "data.train"])
def test_a_setting_that_must_be_written_is_missed(key: str) -> None:
    settings = {name: value for name, value in MINIMAL.items() if name != key}
    with pytest.raises(ConfigError, match=f"no {key}; expected a value for it. Write {key} in the config"):
        RunConfig.from_settings(settings)


@pytest.mark.parametrize("key", ["max_steps", "num_train_epochs", "learning_rate", "save_steps", "max_eval_samples"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_and_rates_must_be_above_zero(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"train.{key}: {value}(.0)?; expected a number above 0"):
        RunConfig.from_settings({**MINIMAL, f"train.{key}": value})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"train.learning_rate": float("nan")}, "train.learning_rate: nan; expected a number above 0"),
        ({"train.learning_rate": float("inf")}, "train.learning_rate: inf; expected a number above 0"),
        ({"train.learning_rate": 1e38}, r"learning_rate: 1e\+38; expected a number above 0, at most 10,000"),
        ({"train.num_train_epochs": 1e300}, r"num_train_epochs: 1e\+300; expected .* at most 1,000,000"),
        ({"prompt.encoder": "mlp", "prompt.hidden_size": 10**40}, r"hidden_size: 100000000\.\.\.; expected .* at most"),
        ({"train.seed": 2**32}, "train.seed: 4294967296; expected from 0 to 4,294,967,295"),
        ({"train.weight_decay": -0.1}, "train.weight_decay: -0.1; expected at least 0"),
        ({"train.weight_decay": float("nan")}, "train.weight_decay: nan; expected at least 0"),
        ({"train.warmup_ratio": 1.1}, "train.warmup_ratio: 1.1; expected from 0 to 1"),
        ({"data.max_length": 0}, "data.max_length: 0; expected a number above 0"),
        ({"train.max_batch_tokens": "0"}, "train.max_batch_tokens: 0; expected a number above 0"),
        ({"train.max_batch_tokens": "lots"}, r"train.max_batch_tokens: 'lots'; expected int \| auto \| null\."),
        ({"prompt.hidden_size": 0}, "prompt.hidden_size: 0; expected a number above 0"),
        ({"data.validation_split": 1}, r"data.validation_split: 1.0; expected at least 0 and below 1"),
        ({"data.validation_split": -0.1}, r"data.validation_split: -0.1; expected at least 0 and below 1"),
        ({"train.early_stopping_patience": 0}, "train.early_stopping_patience: 0; expected a number above 0"),
        ({"train.early_stopping_patience": "never"}, r"patience: 'never'; expected int \| auto \| null\."),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        RunConfig.from_settings({**MINIMAL, **settings})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"prompt.init": "text"}, "prompt.init: text with prompt.init_text: None; expected prompt.init_text with"),
        ({"prompt.init_text": "a"}, "prompt.init: auto with prompt.init_text: 'a'; .*Set both or neither"),
        ({"prompt.init": "prompt"}, "prompt.init: prompt with prompt.init_prompt: None"),
        ({"prompt.init": "random", "prompt.init_prompt": "p"}, "prompt.init: random with prompt.init_prompt: 'p'"),
        (
            {"prompt.encoder": "embedding", "prompt.hidden_size": 8},
            "prompt.encoder: embedding with prompt.hidden_size: 8; .*Remove prompt.hidden_size",
        ),
        ({"train.balanced_sampling": True}, "train.balanced_sampling: true without data.verbalizer; .*Add data"),
        ({"prompt.init": "labels"}, "prompt.init: labels without data.verbalizer; .*Add data.verbalizer, or change"),
        (
            {"train.metric_for_best_model": "accuracy", "data.validation": "v.csv"},
            "train.metric_for_best_model: accuracy without data.verbalizer",
        ),
        (
            {"train.metric_for_best_model": "accuracy", "data.verbalizer": LABELS, "data.validation_split": 0},
            "train.metric_for_best_model: accuracy without data.validation and with data.validation_split: 0",
        ),
        (
            {"train.early_stopping_patience": 3, "data.validation_split": 0},
            "train.early_stopping_patience without data.validation and .*raise data.validation_split, or change",
        ),
        (
            {"train.forward": "shared_prefix", "prompt.encoder": "conditioned"},
            "train.forward: shared_prefix with prompt.encoder: conditioned; expected rows that are run whole",
        ),
        (
            {"train.forward": "shared_prefix", "train.gradient_checkpointing": True},
            "train.forward: shared_prefix with train.gradient_checkpointing: true; expected rows that are run whole",
        ),
        (
            {"train.forward": "shared_prefix", "data.template": "{text}{prompt:2}"},
            "train.forward: shared_prefix with template '{text}{prompt:2}'; expected .* that begins with a prompt slot",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        RunConfig.from_settings({**MINIMAL, **settings})


@pytest.mark.parametrize(("given", "expected"), [("auto", "auto"), ("500", 500), (500, 500), ("null", None)])
def test_number_of_tokens_may_be_a_number_or_auto(given: object, expected: object) -> None:
    assert RunConfig.from_settings({**MINIMAL, "train.max_batch_tokens": given}).train.max_batch_tokens == expected


def test_settings_that_need_each_other_are_taken_together() -> None:
    together = {
        "prompt.init": "labels",
        "data.verbalizer": LABELS,
        "data.validation": "v.csv",
        "train.metric_for_best_model": "accuracy",
        "train.early_stopping_patience": 2,
    }
    assert RunConfig.from_settings({**MINIMAL, **together}).prompt.init == "labels"


def test_all_mistakes_are_told_at_once(minimal: Path) -> None:
    text = """
model: {dtype: int8}
prompt: {init: text, hidden_size: 0}
data: {train: train.csv, tempalte: a, validation_split: 0}
train: {max_steps: -1, save_steps: 0, seed: x, early_stopping_patience: 2}
"""
    with pytest.raises(
        ConfigError, match=r"config.yaml with the command line's settings has \d+ mistakes: \(1\) "
    ) as caught:
        RunConfig.from_yaml(write(minimal, text), ["--train.zzz", "1"])
    assert {problem.received for problem in caught.value.problems} == {
        "model.dtype: 'int8'",
        "no model.name_or_path",
        "prompt.init: text with prompt.init_text: None",
        "prompt.hidden_size: 0",
        "unknown setting data.tempalte",
        "no data.template",
        "train.seed: 'x'",
        "no train.output_dir",
        "train.max_steps: -1",
        "train.save_steps: 0",
        "train.early_stopping_patience without data.validation and with data.validation_split: 0",
        "unknown setting train.zzz",
    }
    assert all(problem.received in str(caught.value) for problem in caught.value.problems)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"train.seed": "x", "train.forward": "shared_prefix", "data.template": "train.seed: {text}{prompt:2}"},
            {
                "train.seed: 'x'",
                "train.forward: shared_prefix with template 'train.seed: {text}{prompt:2}'",
            },
        ),
        (
            {"data.verbalizer": {"x": " x"}, "data.template": "{text}"},
            {"a verbalizer with labels ['x']", "template '{text}' has no prompt slot"},
        ),
    ],
)
def test_mistakes_that_do_not_follow_from_each_other_are_all_told(settings: dict[str, Any], told: set[str]) -> None:
    with pytest.raises(ConfigError, match="the settings has 2 mistakes") as caught:
        RunConfig.from_settings({**MINIMAL, **settings})
    assert {problem.received for problem in caught.value.problems} == told


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prompt.init": "words", "prompt.init_text": "a"}, {"prompt.init: 'words'"}),
        ({"prompt.init": "labels", "data.verbalizer": "x"}, {"data.verbalizer: 'x'"}),
        ({"data.template": None, "train.forward": "shared_prefix"}, {"data.template: None"}),
        ({"data.answer": 5, "data.verbalizer": "x"}, {"data.answer: 5", "data.verbalizer: 'x'"}),
        ({"data.answer": None, "data.verbalizer": {"x": " x"}}, {"data.answer: None"}),
    ],
)
def test_no_mistake_is_told_that_only_follows_from_another(settings: dict[str, Any], told: set[str]) -> None:
    with pytest.raises(ConfigError, match=r"^the settings") as caught:
        RunConfig.from_settings({**MINIMAL, **settings})
    assert {problem.received for problem in caught.value.problems} == told


def test_a_key_given_twice_is_refused(minimal: Path) -> None:
    text = minimal.read_text()
    with pytest.raises(ConfigError, match=r"config.yaml has train \(line \d+\) twice; expected each setting once"):
        RunConfig.from_yaml(write(minimal, f"{text}train: {{output_dir: other}}\n"))
    with pytest.raises(ConfigError, match=r"has seed \(line \d+\) twice"):
        RunConfig.from_yaml(write(minimal, text.replace("{output_dir", "{seed: 1, seed: 2, output_dir")))


def test_a_single_mistake_is_not_counted() -> None:
    with pytest.raises(ConfigError, match=r"^my config: train.seed: 'x'; expected int\. Correct its type or value\.$"):
        RunConfig.from_settings({**MINIMAL, "train.seed": "x"}, "my config")


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["--train.seed"], "command-line argument '--train.seed'; expected settings as --section.key value"),
        (["train.seed", "3"], "command-line argument 'train.seed'; expected settings"),
        (["--train.seed", "1", "extra"], "command-line argument 'extra'; .*Give each setting its value"),
    ],
)
def test_an_override_without_its_value_is_refused(minimal: Path, overrides: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        RunConfig.from_yaml(minimal, overrides)
