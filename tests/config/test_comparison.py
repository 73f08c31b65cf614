"""A comparison's config: a training run's, and a section more."""

from pathlib import Path
from typing import Any

import pytest

from ptuning.config.comparison import ComparisonConfig
from ptuning.config.run import RunConfig
from ptuning.errors import ConfigError

SETTINGS: dict[str, Any] = {
    "model.name_or_path": "model",
    "data.template": "{prompt:4}{text}",
    "data.verbalizer": {"no": " no", "yes": " yes"},
    "train.output_dir": "run",
}


def test_the_config_of_a_run_is_one_too_and_both_go_through_yaml(tmp_path: Path) -> None:
    run, file = RunConfig.from_settings(SETTINGS), tmp_path / "config.yaml"
    file.write_text(run.to_yaml())
    config = ComparisonConfig.from_yaml(file)
    assert config == ComparisonConfig.of_run(run)
    assert config.run == run
    given = ["--compare.ways=[zero-shot, lora]", "--compare.seeds", "5", "--compare.least_accuracy=0.9"]
    changed = ComparisonConfig.from_yaml(file, given)
    assert (changed.compare.ways, changed.compare.seeds) == (["zero-shot", "lora"], 5)
    file.write_text(changed.to_yaml())
    assert ComparisonConfig.from_yaml(file) == changed


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"compare.seeds": 21}, r"compare.seeds: 21; expected from 1 to 20"),
        ({"compare.rates": 6}, r"compare.rates: 6; expected from 1 to 5"),
        ({"compare.least_accuracy": 90}, r"compare.least_accuracy: 90.0; expected from 0 to 1"),
        ({"compare.most_milliseconds": float("nan")}, r"compare.most_milliseconds: nan; expected a number above 0"),
        ({"train.metric_for_best_model": "accuracy", "data.validation_split": 0}, r"validation rows with it"),
    ],
)
def test_what_is_wrong_is_told(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ComparisonConfig.from_settings(SETTINGS | settings)
