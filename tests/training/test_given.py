"""A run whose rows and model a program gives, and which calls the program back."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from conftest import review_rows
from running import log, trained

import ptuning
from ptuning.errors import DataError

ROWS = {"train": review_rows(64), "validation": review_rows(16, 64), "test": review_rows(24, 80)}


@pytest.fixture
def bare(run_config: Path) -> ptuning.RunConfig:
    """The small run without files of rows."""
    config = ptuning.RunConfig.from_yaml(run_config, ["--train.max_steps=4"])
    return dataclasses.replace(config, data=dataclasses.replace(config.data, train=None, validation=None, test=None))


def bare_in(config: ptuning.RunConfig, directory: Path) -> ptuning.RunConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, output_dir=str(directory)))


def test_rows_of_a_program_give_the_prompt_that_a_files_rows_give(
    bare: ptuning.RunConfig, run_config: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {**ROWS, "train": pandas.DataFrame(ROWS["train"])}
    result = ptuning.train(bare, rows=given)
    without_test = {**given, "test": None}
    own = ptuning.train(bare_in(bare, tmp_path / "validated"), rows=without_test).prompt.training
    assert own["results_of"] == "validation rows, which also chose the checkpoint"
    of_files = trained(run_config, "--train.max_steps=4", f"--train.output_dir={tmp_path}/files")
    assert torch.equal(result.prompt.embeddings_PH, of_files.prompt.embeddings_PH)
    assert result.metrics["results"] == of_files.metrics["results"]


def test_validation_rows_are_set_aside_of_a_programs_rows(
    bare: ptuning.RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    result = ptuning.train(bare, rows={"train": ROWS["train"]})
    assert result.prompt.training["rows"] == 51
    assert result.prompt.training["results_of"].startswith("validation rows set aside from the training rows")
    assert "13 of 64 training rows are set aside as validation rows" in caplog.text


def test_a_loaded_model_is_used_as_it_is(bare: ptuning.RunConfig, tmp_path: Path) -> None:
    backbone = ptuning.Backbone.from_pretrained(bare.model.name_or_path, "float32", "cpu")
    elsewhere = dataclasses.replace(bare, model=dataclasses.replace(bare.model, name_or_path=str(tmp_path / "none")))
    result = ptuning.train(elsewhere, rows=ROWS, backbone=backbone)
    assert result.prompt.base_name == backbone.name


def test_a_prompt_names_the_files_that_it_was_trained_on_and_no_others(run_config: Path, tmp_path: Path) -> None:
    names = {split: f"{tmp_path}/{split}.csv" for split in ROWS}
    assert trained(run_config, "--train.max_steps=2").prompt.training["data"] == names
    config = ptuning.RunConfig.from_yaml(run_config, ["--train.max_steps=2", f"--train.output_dir={tmp_path}/given"])
    assert ptuning.train(config, rows=ROWS).prompt.training["data"] == {}


def test_a_program_is_called_after_steps_and_evaluations(bare: ptuning.RunConfig, tmp_path: Path) -> None:
    steps, evaluations = list[int](), list[dict[str, Any]]()
    ptuning.train(bare, rows=ROWS, on_step=lambda step: steps.append(step.step), on_evaluate=evaluations.append)
    assert steps == [1, 2, 3, 4]
    assert evaluations == [record for record in log(tmp_path / "run") if "eval_loss" in record]
    assert [record["step"] for record in evaluations] == [0, 4]


def test_a_run_first_says_what_it_will_do(bare: ptuning.RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    ptuning.train(bare, rows=ROWS)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:6] == [
        f"base: {bare.model.name_or_path}, float32 on cpu, frozen",
        "prompt: 4 virtual tokens, embedding encoder, 128 trained parameters; saved as 1 kB",
        "train: 64 rows: positive 32, negative 32",
        "validation: 16 rows: positive 8, negative 8",
        "test: 24 rows: positive 12, negative 12",
        "steps: 4 of 8 rows, rate 0.01",
    ]


def test_the_rows_of_a_step_are_those_of_all_its_batches(
    bare: ptuning.RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    accumulated = dataclasses.replace(bare.train, gradient_accumulation_steps=2)
    ptuning.train(dataclasses.replace(bare, train=accumulated), rows=ROWS)
    assert "steps: 4 of 16 rows, rate 0.01" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            {"training": ROWS["train"]},
            r"rows of training; expected a mapping .*\. Name the splits train, validation, test",
        ),
        (ROWS["train"], r"rows: list; expected a mapping from a split to its rows"),
        ({"test": ROWS["test"]}, r"no training rows; expected data\.train in the config, or rows from a program"),
        ({"train": [{"text": "a", "label": None}]}, r"train row 0: column 'label' holds None"),
        (None, r"no training rows"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_told_in_a_line(bare: ptuning.RunConfig, rows: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        ptuning.train(bare, rows=rows)
    assert not Path(bare.train.output_dir).exists()


def test_a_run_of_a_programs_rows_goes_on_with_the_same_ones_only(bare: ptuning.RunConfig) -> None:
    def stop(record: Any) -> None:
        if record.step == 3:
            raise KeyboardInterrupt

    saved_often = dataclasses.replace(bare, train=dataclasses.replace(bare.train, save_steps=1))
    with pytest.raises(KeyboardInterrupt):
        ptuning.train(saved_often, rows=ROWS, on_step=stop)
    other = {**ROWS, "train": ROWS["train"][::-1]}
    with pytest.raises(ptuning.PTuningError, match=r"--resume of .* with other training rows"):
        ptuning.train(saved_often, resume=True, rows=other)
    assert ptuning.train(saved_often, resume=True, rows=ROWS).prompt.training["steps"] == 4
