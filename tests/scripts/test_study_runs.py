"""What a run of a study does with its rows and its time."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from studies import pace
from studies.plan import KINDS, Run
from studies.runs import averaged, record_of
from studies.tasks import StudyTask
from studies.weights import peft_encoder, trained_weights
from studies.words import with_demonstrations

from ptuning.config import TrainConfig
from ptuning.data import Example, Row, Task
from ptuning.evaluation import RowScores
from ptuning.forward import objective
from ptuning.model import Backbone
from ptuning.training import PromptSteps, accelerator_on

pytestmark = [
    pytest.mark.filterwarnings("ignore:Position ids are not supported"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
WORDS = {"good": " fine", "bad": " poor"}


@pytest.fixture
def task(tmp_path: Path) -> StudyTask:
    """Twelve short rows a split."""
    for split in ("train", "validation", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("text", "label"), *((f"film {i}", list(WORDS)[i % 2]) for i in range(12))])
    return StudyTask("films", "Film: ", "\nIt is", WORDS, folder=tmp_path)


def record(task: StudyTask, model: Path, kind: str, folder: Path, **settings: Any) -> dict[str, Any]:
    folder.mkdir()
    rate = {} if kind == "defaults" else {"train.learning_rate": 0.01}
    run = Run("it", kind, task.name, 0, str(model), "2/0/0", settings={**rate, "train.max_steps": 3}, **settings)
    return record_of(run, task, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_and_is_scored(task: StudyTask, model_directory: Path, tmp_path: Path, kind: str) -> None:
    found = record(task, model_directory, kind, tmp_path / "run")
    assert found["steps"] == (0 if kind == "words" else 3)
    assert 0 <= found["test"]["accuracy"] <= 1
    assert json.loads(json.dumps(found))["kind"] == kind
    assert found["device"]


def test_an_ensemble_averages_the_probabilities_of_prompts_with_seeds_of_their_own(
    task: StudyTask, model_directory: Path, tmp_path: Path
) -> None:
    one, other = torch.tensor([[0.6, 0.4], [0.1, 0.9]]).log(), torch.tensor([[0.3, 0.7], [0.2, 0.8]]).log()
    members = [RowScores(each[:, 0], torch.zeros(2), each + 3) for each in (one, other)]
    found = averaged(members, [1, 1])
    torch.testing.assert_close(found.log_probs_N.exp(), torch.tensor([0.55, 0.85]))
    assert found.is_correct_N.tolist() == [True, True]
    whole = record(task, model_directory, "ensemble", tmp_path / "whole")
    single = record(task, model_directory, "prompt", tmp_path / "single")
    assert whole["test"]["loss"] != single["test"]["loss"]
    assert whole["seconds"] > single["seconds"]


@pytest.mark.parametrize("kind", ["prompt", "lora", "all_weights"])
def test_the_steps_that_are_timed_leave_no_trace(
    task: StudyTask, model_directory: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace.Paces, "steps_for", lambda paces, peft_steps: peft_steps)
    timed = record(task, model_directory, kind, tmp_path / "timed", peft_steps=3)
    plain = record(task, model_directory, kind, tmp_path / "plain")
    assert timed["paces"]["ratio"] > 0
    assert (timed["steps"], timed["validation"]) == (plain["steps"], plain["validation"])


def test_a_faster_method_makes_more_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def taking(seconds: float, stalled: tuple[int, ...] = ()) -> Any:
        def step(number: int) -> None:
            nonlocal clock
            clock += seconds * (1 + number) * (50 if number in stalled else 1)

        return step

    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock)
    theirs = taking(3.0, stalled=(0, 1, 5))
    theirs.device = torch.device("cpu")
    assert pace.measured(theirs, taking(0.5)).steps_for(160) == 960


@pytest.mark.parametrize("kind", ["peft_prompt_tuning", "peft_p_tuning"])
def test_pefts_own_forward_gives_the_same_gradient(model_directory: Path, kind: str) -> None:
    backbone = Backbone.from_pretrained(str(model_directory), "float32")
    coder = backbone.coder(Task("{prompt:3}{text}", verbalizer=WORDS))
    examples = coder.encode([Row({"text": text, "label": "bad"}, "") for text in ("a long film", "short")])
    encoder = peft_encoder(kind, backbone, 3)
    objective.loss(backbone, encoder(), backbone.collate(examples)).backward()
    ours = [each.grad for each in encoder.parameters() if each.requires_grad]
    encoder.zero_grad()
    accelerator = accelerator_on(backbone.device)
    theirs = pace.PeftSteps(backbone, 3, PromptSteps(backbone, examples, TrainConfig("x"), accelerator))
    theirs.model.prompt_encoder["default"] = encoder.encoder
    theirs.loss(examples).backward()
    for own, other in zip(ours, encoder.parameters(), strict=True):
        torch.testing.assert_close(own, other.grad, rtol=1e-4, atol=1e-6)


def test_demonstrations_stand_in_front_with_their_answers() -> None:
    task = Task("{prompt:3}Film: {text}\nIt is{prompt:2}", verbalizer=WORDS, max_length=10)
    rows = [Row({"text": "a {long} one", "label": "bad"}, ""), Row({"text": "short", "label": "good"}, "")]
    shown = with_demonstrations(task, rows, 2, seed=0)
    first, second, question = shown.without_prompt().template.split("\n\n")
    assert {first, second} == {"Film: a {{long}} one\nIt is poor", "Film: short\nIt is fine"}
    assert question == "Film: {text}\nIt is"
    assert shown.max_length is None
    assert with_demonstrations(task, rows, 0, seed=0).template == question


def test_written_answers_are_shown_as_they_are() -> None:
    task = Task("The capital of {text} is", answer=" {label}")
    shown = with_demonstrations(task, [Row({"text": "France", "label": "Paris"}, "")], 1, seed=0)
    assert shown.template == "The capital of France is Paris\n\nThe capital of {text} is"


def test_what_texts_in_a_prompts_place_score_stands_beside_it(
    task: StudyTask, model_directory: Path, tmp_path: Path
) -> None:
    task = replace(task, instruction="Good or bad?\n")
    found = record(task, model_directory, "readable", tmp_path / "readable")
    texts = {each["prompt"]: each for each in found["texts"]}
    assert set(texts) == {"no prompt", "human prompt", "decoding as text", "soft prompt"}
    assert texts["human prompt"]["text"] == "Good or bad?\n"
    assert texts["soft prompt"]["accuracy"] == pytest.approx(found["test"]["accuracy"], abs=1e-5)
    assert found["verdict"] == "NOT JUDGED"  # twelve rows are too few
    searched = record(task, model_directory, "hardened", tmp_path / "hardened")
    assert "hardened text" in {each["prompt"] for each in searched["texts"]}


def test_rows_of_trained_weights_are_read_as_each_alone_and_padding_sees_something(model_directory: Path) -> None:
    weights = trained_weights(str(model_directory), "all_weights", 0, torch.device("cpu"))
    weights._is_mixed = False
    masks: list[torch.Tensor] = []
    weights.model.register_forward_pre_hook(
        lambda _, args, given: masks.append(given["attention_mask"]), with_kwargs=True
    )
    examples = [Example(list(range(5, 5 + num)), [7, 9][: 1 + num % 2]) for num in (4, 9, 2)]
    together, _, _ = weights._logits(examples)
    alone = torch.cat([weights._logits([each])[0] for each in examples])
    torch.testing.assert_close(together, alone)
    assert masks[0].any(-1).all()  # where attention sees nothing, CUDA's gradient is NaN
