"""What a user can get wrong on the command line: exit status 2 and one line that says what to do."""

import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from conftest import review_rows, write_csv
from families import tiny_backbone
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ptuning.cli import main as cli
from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.model import Backbone
from ptuning.model.causal import CausalBackbone
from ptuning.prompts.soft_prompt import SoftPrompt
from ptuning.prompts.storage import OWN_FILE, WEIGHTS_FILE
from ptuning.training import run_directory
from ptuning.training.run_directory import RunDirectory

TASK = Task("{prompt:4}review: {text}\nsentiment:", verbalizer={"negative": " negative", "positive": " positive"})
Refused = Callable[..., str]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs a command in this process; what the libraries log counts as stderr, as it does for a user."""
    for handler in (each for name in ("transformers", "datasets") for each in logging.getLogger(name).handlers):
        if type(handler) is logging.StreamHandler:  # and none of pytest's own, which are of derived types
            monkeypatch.setattr(handler, "stream", sys.stderr)

    def outcome(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        return Outcome(status, *capsys.readouterr())

    return outcome


@pytest.fixture
def refused(run: Callable[..., Outcome], tmp_path: Path) -> Refused:
    """Runs a command that must fail as a user's mistake does, and gives its line."""

    def line(*arguments: object, match: str) -> str:
        existed = (tmp_path / "run").exists()
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), err
        assert re.fullmatch(r"ptuning: [^\n]+; expected [^\n]+\.\n", err), err
        assert re.search(match, err), err
        assert existed or not (tmp_path / "run").exists()
        return err

    return line


@pytest.fixture(scope="module")
def made_prompt(backbone: Backbone, model_directory: Path) -> SoftPrompt:
    """A prompt for the tiny llama that names its directory."""
    generator = torch.Generator().manual_seed(0)
    embeddings_PH = torch.randn(4, backbone.width, generator=generator)
    return SoftPrompt(embeddings_PH, TASK, str(model_directory), fingerprint=backbone.fingerprint)


@pytest.fixture
def saved(made_prompt: SoftPrompt, tmp_path: Path) -> Path:
    """That prompt's directory, to break."""
    return made_prompt.save(tmp_path / "prompt")


@pytest.fixture
def model_copy(model_directory: Path, tmp_path: Path) -> Path:
    """A model directory to break."""
    return Path(shutil.copytree(model_directory, tmp_path / "model"))


def saved_model(path: Path, seed: int = 0, **changes: object) -> Path:
    """Another tiny llama's directory."""
    other = tiny_backbone("llama", seed, **changes)
    other.model.save_pretrained(path)
    other.tokenizer.save_pretrained(path)
    return path


def changed(config: Path, section: str, **settings: Any) -> Path:
    """The config with other settings."""
    content = yaml.safe_load(config.read_text())
    content[section].update(settings)
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    return config


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_all_that_these_tests_break_works_unbroken(
    run: Callable[..., Outcome], run_config: Path, saved: Path, model_copy: Path, tmp_path: Path
) -> None:
    status, out, err = run("predict", saved, "--model", model_copy, "--input", "the film was good")
    assert (status, err) == (0, "")
    assert re.fullmatch(r"(negative|positive) 0\.\d+\n", out)
    assert run("evaluate", saved, "--data", tmp_path / "test.csv").status == 0
    assert run("train", "--config", run_config, "--train.max_steps", 1).status == 0
    assert (tmp_path / "run" / "metrics.json").is_file()


# Command lines


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["tune"], "invalid choice: 'tune' .*'train', 'compare', 'distill', 'init', 'evaluate'.*See ptuning --help"),
        (["--fast"], "required: COMMAND"),
        (["train"], "train without --config; expected a config file"),
        (["train", "--config"], "--config: expected one argument.*See ptuning train --help"),
        (["predict", "PROMPT"], "one of the arguments --input --data is required"),
        (["predict", "PROMPT", "--input", "a", "--data", "b.csv"], "--data: not allowed with argument --input"),
        (["predict", "PROMPT", "--input", "a", "--fast"], "unrecognized arguments: --fast"),
        (
            ["predict", "PROMPT", "--input", "a", "--batch-size", "0"],
            "--batch-size: '0' is not an integer of 1",
        ),
        (
            ["predict", "PROMPT", "--input", "a", "--batch-size", "-1"],
            "--batch-size: '-1' is not an integer of 1",
        ),
        (["predict", "PROMPT", "--input", "a", "--max-new-tokens", "few"], "--max-new-tokens: 'few' is not an integer"),
        (["predict", "PROMPT", "--input", "a", "--dtype", "int8"], "--dtype: invalid choice: 'int8' .*'float32'"),
        (["predict", "PROMPT", "--input", "a", "--device", "toaster"], "device toaster .*machine. Use auto or cpu"),
        (
            ["predict", "PROMPT", "--input", "a", "--max-batch-tokens", "3"],
            "row 0 of .* expected at most 3, the tokens that a batch may have. Raise max_batch_tokens",
        ),
        (["inspect", "PROMPT", "--input", "a"], "a row for a prompt that is the same for every row"),
        (["inspect", "PROMPT", "--top-k", "0"], "k=0 neighbours; expected from 1 to .*--top-k"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(
    refused: Refused, saved: Path, arguments: list[str], match: str
) -> None:
    refused(*[saved if each == "PROMPT" else each for each in arguments], match=match)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_rows_that_do_not_fit_into_memory_are_told_in_one_line(
    run: Callable[..., Outcome],
    run_config: Path,
    saved: Path,
    tmp_path: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("ptuning.forward.objective.label_logits", fail)
    for batch_size, rows, remedy in (
        (24, "24 rows", r"Set max_batch_tokens to \d+ or less, or lower batch_size"),
        (1, "1 row", "Shorten the row, or quantize the model"),
    ):
        status, out, err = run(command, saved, "--data", tmp_path / "test.csv", "--batch-size", batch_size)
        assert (status, out) == (2, "")
        assert re.fullmatch(
            rf"ptuning: out of memory with {rows} \(\d+ tokens\) at once; expected [^.]+\. {remedy}\.",
            err.splitlines()[-1],  # the progress bar is above it
        ), err


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--fast", "1"], "unknown setting fast; expected a setting that ptuning train --help shows"),
        (["--train.max_step", "1"], r"unknown setting train.max_step; expected train.max_steps"),
        (["--train.max_steps"], r"'--train.max_steps'; expected settings as --section.key value"),
        (["train.max_steps", "5"], r"'train.max_steps'; expected settings as --section.key value"),
        (["--train.max_steps", "many"], r"train.max_steps: 'many'; expected int"),
        (["--model.quantization", "int2"], r"model.quantization: 'int2'; expected one of none, int8, int4"),
        (["--model.device", "toaster"], "device toaster .*Use auto or cpu"),
    ],
)
def test_a_wrong_override_is_told_in_one_line(
    refused: Refused, run_config: Path, arguments: list[str], match: str
) -> None:
    refused("train", "--config", run_config, *arguments, match=match)


# Configs


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("model: {name_or_path: [", r"config.yaml is not YAML \(.*line \d.*Correct its syntax"),
        ("just words", "config.yaml holds str, not sections; expected the sections model, prompt, data and train"),
        ("", "config.yaml holds NoneType, not sections"),
    ],
)
def test_a_config_that_is_no_yaml_of_sections_is_refused(
    refused: Refused, run_config: Path, content: str, match: str
) -> None:
    refused("train", "--config", write(run_config, content), match=match)


def test_a_missing_config_is_refused(refused: Refused, tmp_path: Path) -> None:
    refused("train", "--config", tmp_path / "none.yaml", match="config file .*none.yaml does not exist.*--config")


@pytest.mark.parametrize(
    ("section", "settings", "match"),
    [
        ("train", {"lr": 0.1}, r"config.yaml: unknown setting train.lr; expected"),
        ("train", {"learning_rates": 0.1}, r"unknown setting train.learning_rates; expected train.learning_rate\."),
        ("train", {"learning_rate": "high"}, "train.learning_rate: 'high'; expected float"),
        ("train", {"learning_rate": -1}, r"train.learning_rate: -1.0; expected a number above 0"),
        ("train", {"output_dir": None}, "train.output_dir: None; expected str"),
        ("prompt", {"encoder": "gru"}, "prompt.encoder: 'gru'; expected one of embedding, mlp, lstm, residual"),
        ("data", {"template": "{text}"}, r"template '{text}' has no prompt slot; expected a slot such as {prompt:20}"),
        ("data", {"template": "{prompt:0}{text}"}, r"slot {prompt:0} .*N at least 1"),
        ("data", {"template": "{prompt:4}{text"}, "template '{prompt:4}{text' .*Write literal braces as {{ and }}"),
        ("data", {"template": "{prompt:4}{body}"}, r"train.csv line 2 has no column 'body'; .*there are: text, label"),
        ("data", {"answer": "{kind}"}, r"train.csv line 2 has no column 'kind'"),
        ("data", {"answer": "{label}{text}"}, r"answer '{label}{text}' with a verbalizer; expected one column alone"),
        ("data", {"answer": "{prompt:2}{label}"}, "answer .* has a prompt slot; expected slots in the template only"),
        ("data", {"verbalizer": {"positive": " yes"}}, r"labels \['positive'\]; expected two labels or more"),
        ("data", {"verbalizer": {"positive": "", "negative": " no"}}, "label 'positive' with no text"),
        (
            "data",
            {"verbalizer": {"positive": " good", "negative": " good film"}},
            "verbalizer text ' good' of 'positive' begins ' good film' of 'negative'",
        ),
        ("data", {"verbalizer": {"good": " yes", "bad": " no"}}, "line 2: label 'positive'; expected one of good, bad"),
    ],
)
def test_settings_that_cannot_be_used_are_told_in_one_line(
    refused: Refused, run_config: Path, section: str, settings: dict[str, Any], match: str
) -> None:
    content = yaml.safe_load(run_config.read_text())
    run_config.write_text(yaml.safe_dump({"prompt": {}, **content}, sort_keys=False))
    refused("train", "--config", changed(run_config, section, **settings), match=match)


# Data


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("train.csv", "", "train.csv has no rows; expected one row or more"),
        ("train.csv", "text,label\n", "train.csv has no rows"),
        (
            "train.csv",
            "text,label,text\na,positive,b\n",
            "train.csv has two columns 'text'; expected one name per column",
        ),
        ("train.csv", "words,label\na,positive\n", "train.csv line 2 has no column 'text'; .*there are: words, label"),
        ("train.csv", "text,label\na,positive\nb\n", "train.csv line 3: column 'label' holds None; expected text"),
        ("train.csv", "text,label\na,positive\nb,fine\n", "line 3: label 'fine'; expected one of negative, positive"),
        ("train.csv", 'text,label\na,positive\n"b,positive\n', "train.csv line 3 is not CSV"),
        ("train.json", "[" * 100_000, "train.json record 1 is not JSON"),
        ("train.jsonl", '{"text": null, "label": "positive"}', "train.jsonl line 1: column 'text' holds None"),
        ("train.jsonl", '{"text": "a", "label": "positive"}\n{"text":', "train.jsonl line 2 is not JSON"),
        ("train.parquet", "PAR1", r"train.parquet cannot be read \(.*ArrowInvalid"),
    ],
)
def test_bad_training_rows_are_named(
    refused: Refused, run_config: Path, tmp_path: Path, name: str, content: str, match: str
) -> None:
    source = write(tmp_path / name, content)
    refused("train", "--config", run_config, "--data.train", source, match=match)


def test_a_missing_data_file_is_refused(refused: Refused, run_config: Path, tmp_path: Path) -> None:
    (tmp_path / "validation.csv").unlink()
    refused("train", "--config", run_config, match="data file .*validation.csv does not exist")


def test_a_bad_row_is_named_in_evaluation_and_prediction_too(refused: Refused, saved: Path, tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "rows.csv", [*review_rows(3), {"text": "the film", "label": "so-so"}])
    refused("evaluate", saved, "--data", rows, match="rows.csv line 5: label 'so-so'; expected one of negative")
    other = write_csv(tmp_path / "other.csv", [{"body": "a"}])
    refused("predict", saved, "--data", other, match="other.csv line 2 has no column 'text'")


def test_rows_of_validation_are_those_evaluated_where_there_was_no_test(
    run: Callable[..., Outcome], run_config: Path, tmp_path: Path
) -> None:
    assert run("train", "--config", run_config, "--data.test", "null", "--train.max_steps", 1).status == 0
    measured = json.loads(run("evaluate", tmp_path / "run" / "prompt", "--json").out)
    assert measured["capabilities"]["supports_joint_prefix"]
    assert measured["data"] == f"{tmp_path}/validation.csv"
    assert measured["results"]["soft prompt"]["num_rows"] == 16


def test_a_hub_data_sets_validation_split_is_read_where_there_was_no_test(
    made_prompt: SoftPrompt, run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dataclasses.replace(made_prompt, training={"data": {"validation": "org/name"}}).save(tmp_path / "prompt")
    asked: list[tuple[str, str]] = []

    def rows(source: str, split: str, columns: object) -> list[Row]:
        asked.append((source, split))
        return [Row(values, "row") for values in review_rows(2)]

    monkeypatch.setattr("ptuning.data.readers.read_rows", rows)
    assert run("evaluate", path).status == 0
    assert asked == [("org/name", "validation")]


def test_evaluating_without_rows_is_refused(refused: Refused, saved: Path) -> None:
    refused("evaluate", saved, match="no rows to evaluate on; expected a data file with answers. Give one with --data")


def test_one_input_for_a_template_with_two_columns_is_refused(
    refused: Refused, made_prompt: SoftPrompt, tmp_path: Path
) -> None:
    task = dataclasses.replace(TASK, template="{prompt:4}{title}: {text}")
    path = dataclasses.replace(made_prompt, task=task).save(tmp_path / "two")
    refused("predict", path, "--input", "a", match="--input for .* columns title, text; expected one column.*--data")


def test_an_answer_that_takes_all_positions_is_told(refused: Refused, run_config: Path, tmp_path: Path) -> None:
    config = changed(run_config, "data", verbalizer=None, answer="{label}", max_length=20)
    write_csv(tmp_path / "train.csv", [{"text": "a", "label": " good film" * 30}])
    refused("train", "--config", config, match="train.csv line 2 leaves no room for its text: its answer .*shorter by")


def test_a_base_that_is_not_where_the_prompt_says_can_be_given(
    refused: Refused, made_prompt: SoftPrompt, tmp_path: Path
) -> None:
    path = dataclasses.replace(made_prompt, base_name="assets/moved").save(tmp_path / "prompt")
    refused("predict", path, "--input", "a", match="model assets/moved, .*or give the base that .* with --model")


def test_a_reader_that_has_seen_enough_is_no_error(saved: Path) -> None:
    command = f"{sys.executable} -m ptuning.cli.main inspect {saved} --top-k 300 | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_text_that_is_no_unicode_is_refused(refused: Refused, saved: Path) -> None:
    refused("predict", saved, "--input", "a \udce4", match=r"row 0: column 'text' holds 'a \\udce4'; expected text")


# Models


def test_a_missing_model_is_refused(refused: Refused, run_config: Path, saved: Path, tmp_path: Path) -> None:
    match = "model .*/nothing, no directory here, cannot be loaded"
    refused("train", "--config", run_config, "--model.name_or_path", tmp_path / "nothing", match=match)
    refused("predict", saved, "--model", tmp_path / "nothing", "--input", "a", match=match)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _without_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def _with_another_shape(path: Path) -> None:
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, path, metadata={"format": "pt"})


BROKEN_MODELS: list[tuple[str, Callable[[Path], object], str]] = [
    ("model.safetensors", _cut, "incomplete metadata"),
    ("model.safetensors", _without_a_tensor, "it lacks weights such as model.layers.1.mlp.up_proj.weight"),
    ("model.safetensors", _with_another_shape, "mismatch"),
    ("model.safetensors", Path.unlink, "no file named model.safetensors"),
    ("config.json", lambda path: path.write_text('{"model_type":'), "config.json' is not a valid JSON file"),
    ("config.json", lambda path: path.write_text("{}"), "Unrecognized model"),
    ("tokenizer.json", _cut, "Expecting"),
]


@pytest.mark.parametrize(("name", "damage", "match"), BROKEN_MODELS)
def test_a_broken_model_is_refused(
    refused: Refused, run_config: Path, model_copy: Path, name: str, damage: Callable[[Path], object], match: str
) -> None:
    damage(model_copy / name)
    config = changed(run_config, "model", name_or_path=str(model_copy))
    refused("train", "--config", config, match=rf"model directory \S+/model cannot be loaded \(.*{match}")


def test_a_broken_model_is_told_in_one_line_by_a_process_of_its_own(saved: Path, model_copy: Path) -> None:
    _without_a_tensor(model_copy / "model.safetensors")
    command = [sys.executable, "-m", "ptuning.cli.main", "predict", saved, "--model", model_copy, "--input", "a"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"ptuning: model directory .* lacks weights such as .*\n", done.stderr), done.stderr


# Prompts


def test_a_missing_prompt_is_refused(refused: Refused, tmp_path: Path) -> None:
    match = "prompt directory .*/nothing does not exist; expected a saved prompt"
    for command in (["evaluate"], ["inspect"], ["predict", "--input", "a"]):
        refused(command[0], tmp_path / "nothing", *command[1:], match=match)


def _with_another_tensor(path: Path) -> None:
    save_file({"prompt_embeddings": torch.ones(4, 32)}, path)


def _as_another_adapter(path: Path) -> None:
    save_file({"lora_A": torch.ones(4, 32)}, path)


BROKEN_PROMPTS: list[tuple[str, Callable[[Path], object], str]] = [
    (WEIGHTS_FILE, _cut, f"{WEIGHTS_FILE} is truncated or broken"),
    (WEIGHTS_FILE, Path.unlink, f"has no {WEIGHTS_FILE}; expected a saved prompt's directory"),
    (WEIGHTS_FILE, _with_another_tensor, f"{WEIGHTS_FILE} .*its tensor is not the one {OWN_FILE} describes"),
    (WEIGHTS_FILE, _as_another_adapter, r"holds {'lora_A': \[4, 32\]}; expected one tensor prompt_embeddings"),
    (OWN_FILE, _cut, f"{OWN_FILE} is truncated or broken"),
    (OWN_FILE, lambda path: path.write_text("[]"), f"{OWN_FILE} is truncated or broken .*input should be an object"),
    (OWN_FILE, lambda path: path.write_text('{"format_version": 99}'), "has format version 99; .*Upgrade ptuning"),
]


@pytest.mark.parametrize(("name", "damage", "match"), BROKEN_PROMPTS)
def test_a_broken_prompt_is_refused(
    refused: Refused, saved: Path, name: str, damage: Callable[[Path], object], match: str
) -> None:
    damage(saved / name)
    refused("predict", saved, "--input", "a", match=match)


def test_a_prompt_of_another_base_is_refused_unless_allowed(
    refused: Refused, run: Callable[..., Outcome], saved: Path, tmp_path: Path
) -> None:
    other = saved_model(tmp_path / "other", seed=1)
    asked = ("predict", saved, "--model", other, "--input", "a")
    refused(*asked, match="a prompt tuned on .*tiny-llama .*/other .*expected the base .*--allow-other-base")
    status, out, err = run(*asked, "--allow-other-base", "--json")
    assert (status, err) == (0, "")
    assert set(json.loads(out)["answers"][0]["probabilities"]) == {"negative", "positive"}


def test_a_prompt_of_another_width_is_refused_even_if_another_base_is_allowed(
    refused: Refused, saved: Path, tmp_path: Path
) -> None:
    other = saved_model(tmp_path / "wide", hidden_size=64)
    asked = ("predict", saved, "--model", other, "--input", "a")
    for extra in ([], ["--allow-other-base"]):
        refused(*asked, *extra, match="a prompt of width 32 for .*/wide of width 64; expected the base it was tuned on")


def test_a_prompt_that_names_no_base_needs_one(refused: Refused, made_prompt: SoftPrompt, tmp_path: Path) -> None:
    path = dataclasses.replace(made_prompt, base_name=None).save(tmp_path / "nameless")
    refused("predict", path, "--input", "a", match="nameless names no base model; .*Give one with --model")


# Runs


def test_an_output_dir_that_holds_a_run_is_not_overwritten(refused: Refused, run_config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    kept = write(tmp_path / "run" / "config.yaml", "of another run")
    refused("train", "--config", run_config, match="output_dir .*/run already holds a run; .*Go on with --resume")
    assert kept.read_text() == "of another run"


def test_a_run_that_ended_before_its_first_checkpoint_is_begun_anew(
    run: Callable[..., Outcome], run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(self: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("ptuning.training.loop.Loop._step", out_of_memory)
        with pytest.raises(MemoryError):
            run("train", "--config", run_config)
    assert (tmp_path / "run" / "config.yaml").exists()
    asked = ("train", "--config", run_config, "--train.per_device_train_batch_size", 4, "--train.max_steps", 4)
    assert run(*asked).status == 0
    (tmp_path / "run" / "metrics.json").unlink()
    shutil.rmtree(tmp_path / "run" / "prompt")
    assert "already holds a run" in run(*asked).err


def test_a_forward_path_that_the_model_cannot_take_is_told_before_anything_is_written(
    refused: Refused, run_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CausalBackbone, "supports_prefix_cache", False)
    refused("train", "--config", run_config, "--train.forward", "shared_prefix", match="Use forward: auto")


def test_an_output_dir_with_other_files_is_not_used(refused: Refused, run_config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    kept = write(tmp_path / "run" / "thesis.txt", "years of work")
    for extra in ([], ["--resume"]):
        refused("train", "--config", run_config, *extra, match="output_dir .*/run is not empty; .*Choose another")
    assert [path.name for path in kept.parent.iterdir()] == ["thesis.txt"]
    kept.rename(tmp_path / "thesis.txt")
    (tmp_path / "run" / ".prompt.abc").mkdir()  # a replacement of a prompt was killed: the old one may be in there
    refused("train", "--config", run_config, match="output_dir .*/run is not empty; .*Choose another")
    assert (tmp_path / "run" / ".prompt.abc").exists()


def test_an_output_dir_that_is_a_file_or_under_one_is_refused(refused: Refused, run_config: Path) -> None:
    match = "output_dir .*config.yaml is a file; expected a directory"
    refused("train", "--config", run_config, "--train.output_dir", run_config, match=match)
    match = r"cannot be written \(File name too long\)"
    refused("train", "--config", run_config, "--train.output_dir", run_config.parent / ("x" * 300), match=match)
    match = "config.yaml/run cannot be written .*expected a place to write to"
    refused("train", "--config", run_config, "--train.output_dir", run_config / "run", match=match)


def test_resuming_with_other_settings_is_refused(
    refused: Refused, run: Callable[..., Outcome], run_config: Path
) -> None:
    assert run("train", "--config", run_config, "--train.max_steps", 1).status == 0
    match = r"--resume of .*/run with other settings \(train.max_steps: 12 instead of 1\); .*another train.output_dir"
    refused("train", "--config", run_config, "--resume", match=match)


@pytest.mark.parametrize("content", ["model: [", "just words", ""])
def test_a_broken_config_of_a_run_is_told_on_resume(
    refused: Refused, run_config: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "run").mkdir()
    kept = write(tmp_path / "run" / "config.yaml", content)
    refused("train", "--config", run_config, "--resume", match="run/config.yaml is broken; expected the config that")
    assert kept.read_text() == content


def test_resuming_with_other_rows_is_refused(
    refused: Refused, run: Callable[..., Outcome], run_config: Path, tmp_path: Path
) -> None:
    assert run("train", "--config", run_config).status == 0
    (tmp_path / "run" / "metrics.json").unlink()
    checkpoint = (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes()
    write_csv(tmp_path / "train.csv", review_rows(63))
    refused("train", "--config", run_config, "--resume", match="--resume of .*/run with other training rows;")
    assert (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes() == checkpoint


def test_resuming_with_other_weights_is_refused(
    refused: Refused, run: Callable[..., Outcome], run_config: Path, model_copy: Path, tmp_path: Path
) -> None:
    config = changed(run_config, "model", name_or_path=str(model_copy))
    assert run("train", "--config", config).status == 0
    (tmp_path / "run" / "metrics.json").unlink()
    shutil.rmtree(model_copy)
    saved_model(model_copy, seed=1)
    refused("train", "--config", config, "--resume", match="with other weights or precision of the base model;")


def test_a_checkpoint_that_lacks_something_is_refused(
    refused: Refused, run: Callable[..., Outcome], run_config: Path
) -> None:
    assert run("train", "--config", run_config, "--train.max_steps", 1).status == 0
    run_path = run_config.parent / "run"
    (run_path / "metrics.json").unlink()
    torch.save({"encoder": {}}, run_path / "checkpoints" / "last.pt")
    asked = ("train", "--config", run_config, "--train.max_steps", 1, "--resume")
    refused(*asked, match="checkpoint .*last.pt is broken .*optimizer.* expected a whole checkpoint")


def test_a_broken_checkpoint_is_refused(refused: Refused, run: Callable[..., Outcome], run_config: Path) -> None:
    assert run("train", "--config", run_config, "--train.max_steps", 1).status == 0
    run_path = run_config.parent / "run"
    (run_path / "metrics.json").unlink()
    _cut(run_path / "checkpoints" / "last.pt")
    asked = ("train", "--config", run_config, "--train.max_steps", 1, "--resume")
    refused(*asked, match="checkpoint .*last.pt is broken .*expected a whole checkpoint")


def test_a_row_that_cannot_fit_the_models_positions_is_named(
    refused: Refused, run_config: Path, tmp_path: Path
) -> None:
    gpt2 = tiny_backbone("gpt2")  # 96 positions
    gpt2.model.save_pretrained(tmp_path / "gpt2")
    gpt2.tokenizer.save_pretrained(tmp_path / "gpt2")
    changed(run_config, "data", max_length=None, template="{prompt:95}{text}\nsentiment:")
    refused(
        "train",
        "--config",
        changed(run_config, "model", name_or_path=str(tmp_path / "gpt2")),
        match=r"train.csv line 2 needs \d+ tokens before any of its 'text'; expected at most 95: what the model's",
    )


# Disks


def test_a_disk_without_room_is_noticed_before_anything_is_written(
    refused: Refused, run_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(run_config)._replace(free=1000)
    monkeypatch.setattr(run_directory.shutil, "disk_usage", lambda _: usage)
    refused("train", "--config", run_config, match=r"/run cannot be written: \S+ MB are needed and 0.0 MB free")


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            "no space is left on .*--resume",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), r"cannot be written \(Permission denied\)"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space is left on .*--resume"),
    ],
)
def test_a_prompt_that_cannot_be_written_is_told_and_can_be_written_later(
    run: Callable[..., Outcome], run_config: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, match: str
) -> None:
    def failing_save(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ptuning.prompts.storage.save_file", failing_save)
    status, out, err = run("train", "--config", run_config)
    assert (status, out) == (2, "")
    assert re.search(match, err.splitlines()[-1])
    assert not list((run_config.parent / "run").glob("*prompt*"))
    monkeypatch.undo()
    assert run("train", "--config", run_config, "--resume").status == 0


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_whole(
    run: Callable[..., Outcome], run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def save_until_full(state: dict[str, Any], path: Path) -> None:
        save(state, path)
        if state["progress"]["step"] > 3:
            _cut(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_directory.torch, "save", save_until_full)
    status, out, err = run("train", "--config", run_config)
    assert (status, out) == (2, "")
    last_line = err.splitlines()[-1]
    assert re.match(r"ptuning: \S+\.pt cannot be written: no space is left on the disk; .*--resume", last_line)
    checkpoints = RunDirectory(tmp_path / "run")
    state = checkpoints.load_checkpoint("last")
    assert state is not None
    assert state["progress"]["step"] == 3
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.pt")] == ["last.pt"]
    monkeypatch.undo()
    assert run("train", "--config", run_config, "--resume").status == 0


def test_written_answers_end_at_a_stop_text(
    run: Callable[..., Outcome], made_prompt: SoftPrompt, tmp_path: Path
) -> None:
    writes = dataclasses.replace(made_prompt, task=dataclasses.replace(made_prompt.task, verbalizer=None))
    directory = writes.save(tmp_path / "writes")
    command = ("predict", directory, "--input", "a film", "--max-new-tokens", 30, "--json")
    free = json.loads(run(*command).out)["answers"][0]["text"]
    stop = free[2]
    ended = json.loads(run(*command, "--stop", stop, "--stop", "not there").out)["answers"][0]["text"]
    assert ended == free.partition(stop)[0] != free
