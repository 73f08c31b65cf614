"""The harness is given a prompt's own words and rows; what it cannot be given is told, and differences are noticed."""

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import check_lm_eval
import jinja2
import pytest
import torch
import yaml
from check_lm_eval import Answer, compared, write_rows, write_task
from conftest import REPOSITORY, review_rows, write_csv

from ptuning.data.readers import read_rows
from ptuning.data.task import Task
from ptuning.data.template import Template
from ptuning.errors import ConfigError
from ptuning.model import Backbone
from ptuning.prompts.soft_prompt import SoftPrompt

LABELS = {"negative": " negative", "positive": " positive"}
TEMPLATES = (
    "{prompt:4}review: {text}\nsentiment:",
    "{prompt:2}{prompt:2}{text}",
    '{prompt:4}{{{{"é 😀 \\n" {{% raw %}} {text}}}}} {{# {text}{{a "b}}.',
)


@pytest.fixture
def prompt(backbone: Backbone, model_directory: Path) -> SoftPrompt:
    task = Task("{prompt:4}review: {text}\nsentiment:", verbalizer=LABELS)
    embeddings_PH = torch.randn(4, backbone.width, generator=torch.Generator().manual_seed(0)) * 0.5
    return SoftPrompt(embeddings_PH, task, str(model_directory), backbone.fingerprint)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_harness_reads_the_templates_own_words(tmp_path: Path, template: str) -> None:
    task = Task(template, verbalizer=LABELS)
    columns = Template.parse(template).field_names
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({**dict.fromkeys(columns, "{{ 7*7 }} a film\n"), "label": "positive"}) + "\n")
    read = read_rows(str(rows), "test", task.columns)
    write_rows(rows, task, read)
    write_task(tmp_path / "task" / "task.yaml", task, rows)
    settings = yaml.safe_load((tmp_path / "task" / "task.yaml").read_text())
    (record,) = map(json.loads, rows.read_text().splitlines())
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    written = environment.from_string(settings["doc_to_text"]).render(**record)
    (expected,) = Template.parse(task.without_prompt().template).fill(read[0].values)
    assert written == expected
    assert settings["doc_to_choice"] == [" negative", " positive"]
    assert (record["gold"], settings["target_delimiter"]) == (1, "")
    assert Path(settings["dataset_kwargs"]["data_files"]["test"]) == rows
    assert None not in settings.values()


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (Task("{text}{prompt:4}", verbalizer=LABELS), "a prompt that PEFT cannot load"),
        (Task("{prompt:4}{text}"), "a prompt without labels"),
        (Task("{prompt:4}{text}", verbalizer=LABELS, chat_template=True), "or with a chat template"),
        (Task("{prompt:4}{text} is ", verbalizer=LABELS), "a template that ends with ' '"),
    ],
)
def test_what_the_harness_cannot_be_given_is_told(prompt: SoftPrompt, task: Task, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_lm_eval.comparable(dataclasses.replace(prompt, task=task))
    assert check_lm_eval.comparable(prompt) == prompt.task


def test_differences_are_noticed() -> None:
    ours = [Answer("a", -1.0, True), Answer("b", -2.0, False)]
    lines, is_same = compared(ours, [Answer("a", -1.0001, True), Answer("b", -2.0, False)])
    assert is_same
    assert lines[0] == "accuracy by ptuning evaluate: 0.5000 on 2 rows"
    assert lines[3] == "log-likelihood of the expected label: at most 0.000100 nats apart"
    for other in (Answer("b", -1.0, False), Answer("a", -1.01, True), Answer("a", float("nan"), True)):
        assert not compared(ours, [other, ours[1]])[1]
    lines, _ = compared(ours, [Answer("b", -1.0, False), ours[1]])
    assert lines[2:] == [
        "rows with the same label: 1 of 2",
        "log-likelihood of the expected label: at most 0.000000 nats apart",
        "row 0: a here, b there",
    ]


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "check_lm_eval.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_harness_that_is_not_there_is_told(prompt: SoftPrompt, tmp_path: Path) -> None:
    rows = write_csv(tmp_path / "rows.csv", review_rows(4))
    found = script(str(prompt.save(tmp_path / "prompt")), "--data", str(rows), "--lm_eval", str(tmp_path / "none"))
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith("check_lm_eval: no program ")
    assert "expected lm-evaluation-harness. Install it" in line


def test_both_sides_are_run_on_the_same_rows(prompt: SoftPrompt, tmp_path: Path) -> None:
    program = tmp_path / "lm_eval"
    program.write_text(f"#!{sys.executable}\n" + STAND_IN)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    rows = write_csv(tmp_path / "rows.csv", review_rows(6))
    saved = prompt.save(tmp_path / "prompt")
    arguments = (str(saved), "4", "--data", str(rows), "--lm_eval", str(program), "--keep", str(tmp_path / "kept"))
    found = script(*arguments)
    assert found.returncode == 0, found.stderr
    assert "rows with the same label: 4 of 4" in found.stdout
    shutil.rmtree(tmp_path / "kept")
    program.write_text(program.read_text().replace("SHIFT = 0", "SHIFT = 0.01"))
    assert script(*arguments).returncode == 1


# Reads the task as the harness does, and scores it with PEFT alone.
STAND_IN = """
import json, sys
from pathlib import Path
import jinja2, torch, yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

SHIFT = 0
given = dict(zip(sys.argv[1::1], sys.argv[2::1]))
model = dict(pair.split("=", 1) for pair in given["--model_args"].split(","))
task = yaml.safe_load((Path(given["--include_path"]) / "task.yaml").read_text())
tokenizer = AutoTokenizer.from_pretrained(model["pretrained"])
base = AutoModelForCausalLM.from_pretrained(model["pretrained"], dtype=model["dtype"])
lm = PeftModel.from_pretrained(base, model["peft"]).eval()
words = jinja2.Environment(keep_trailing_newline=True).from_string(task["doc_to_text"])
out = Path(given["--output_path"]) / "model"
out.mkdir(parents=True)
with (out / "samples_ptuning_now.jsonl").open("w") as file:
    lines = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
    for number, doc in reversed(list(enumerate(map(json.loads, lines)))):
        context, scores = words.render(**doc), []
        for choice in task["doc_to_choice"]:
            ids = tokenizer(context + task["target_delimiter"] + choice, return_tensors="pt").input_ids
            start = len(tokenizer(context).input_ids)
            with torch.no_grad():
                logits = lm(input_ids=ids).logits[0, -ids.shape[1] - 1 :].log_softmax(-1)
            scores.append(sum(float(logits[i, ids[0, i]]) for i in range(start, ids.shape[1])) + SHIFT)
        file.write(json.dumps({"doc_id": number, "doc": doc, "resps": [[[str(s), "False"]] for s in scores]}) + chr(10))
"""
