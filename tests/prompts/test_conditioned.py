"""A conditioned prompt: trained, saved with its weights, used, and inspected row by row."""

import json
from pathlib import Path

import pytest
import torch

from ptuning.cli import main as cli
from ptuning.config.run import RunConfig
from ptuning.data.examples import Example
from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.errors import PromptError
from ptuning.forward.batch_prompt import as_batch_prompt
from ptuning.forward.paths import label_logits
from ptuning.forward.shared_prefix import can_share
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.inspection.report import inspect
from ptuning.model import Backbone
from ptuning.prompts.encoders import Conditioned
from ptuning.prompts.soft_prompt import SoftPrompt
from ptuning.training import TrainResult, train

TASK = Task("{prompt:4}review: {text}{prompt:1}", verbalizer={"negative": " negative", "positive": " positive"})
ROWS = [{"text": text} for text in ("the film was good", "bad", "a very dull plot and a bad film in the capital", "")]


def encoder_of(backbone: Backbone, seed: int = 0) -> Conditioned:
    """One that has learned something."""
    torch.manual_seed(seed)
    encoder = Conditioned(torch.randn(5, backbone.width) * backbone.vocabulary_VH.std(), 8)
    torch.nn.init.normal_(encoder.output[-1].weight, std=0.2)
    return encoder


def prompt_of(backbone: Backbone, seed: int = 0) -> SoftPrompt:
    encoder = encoder_of(backbone, seed)
    return SoftPrompt(encoder.prompt_PH, TASK, backbone.name, backbone.fingerprint, weights=encoder.state_dict())


@pytest.fixture
def run(run_config: Path) -> TrainResult:
    options = ["--prompt.encoder=conditioned", "--train.max_steps=40"]
    return train(RunConfig.from_yaml(run_config, options))


def test_run_learns_and_comes_back_from_its_directory(run: TrainResult, backbone: Backbone) -> None:
    baseline, tuned = run.metrics["results"].values()
    assert tuned["loss"] < baseline["loss"] - 1
    again = SoftPrompt.load(run.directory)
    assert again.is_conditioned
    assert all(torch.equal(again.weights[name], each) for name, each in run.prompt.weights.items())
    assert again.encoder["name"] == "conditioned"
    lm = PromptedLM(backbone, {"p": again})
    good, bad = lm.classify([{"text": "1 the film was good"}, {"text": "1 the film was bad"}])
    assert good.probabilities["positive"] > bad.probabilities["positive"]


def test_directory_is_no_peft_adapter_and_says_so(run_config: Path, capsys) -> None:
    assert cli.main(["train", "--config", str(run_config), "--prompt.encoder=conditioned", "--train.max_steps=2"]) == 0
    out = capsys.readouterr().out
    (directory,) = [line.removeprefix("saved: ") for line in out.splitlines() if line.startswith("saved: ")]
    assert "It computes one prompt per row from its text, so this is not a PEFT adapter" in out
    assert sorted(file.name for file in Path(directory).iterdir()) == [
        "README.md",
        "encoder.safetensors",
        "ptuning.json",
    ]
    assert "so this is not a PEFT adapter" in (Path(directory) / "README.md").read_text()


def test_answer_is_never_read(backbone):
    encoder = encoder_of(backbone)
    question = [-1, -2, -3, -4, 0, 5, 6, -5]
    made = [
        as_batch_prompt(encoder).embeddings(backbone, backbone.collate([Example(question, answer)]))
        for answer in ([7], [8, 9, 10])
    ]
    assert torch.allclose(*made, atol=1e-6)
    other = as_batch_prompt(encoder).embeddings(
        backbone, backbone.collate([Example([*question[:5], 7, *question[6:]], [7])])
    )
    assert not torch.allclose(other, made[0], atol=1e-2)


def test_a_rows_prompt_depends_on_no_neighbour_and_no_padding(backbone):
    encoder = encoder_of(backbone)
    examples = [Example([-1, -2, -3, -4, 0, *range(5, 5 + n), -5], [9]) for n in (1, 6, 3)]
    with torch.no_grad():
        alone_NV = torch.cat([label_logits(backbone, encoder, backbone.collate([each])) for each in examples])
        for side in ("right", "left"):
            batch = backbone.collate(examples, side)
            assert not can_share(backbone, encoder, batch)
            assert (label_logits(backbone, encoder, batch) - alone_NV).abs().max() < 1e-4


def test_gradients_reach_the_encoder_through_the_model(backbone):
    encoder = encoder_of(backbone)
    batch = backbone.collate([Example([-1, -2, -3, -4, 0, 5, 6, -5], [9]), Example([-1, -2, -3, -4, 0, 7, -5], [8])])
    torch.nn.functional.cross_entropy(label_logits(backbone, encoder, batch), batch.targets_N).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in encoder.parameters())


@pytest.mark.parametrize("method", ["classify", "log_probs", "generate"])
def test_conditioned_and_static_prompts_answer_rows_of_one_call(backbone, method):
    static = SoftPrompt(torch.randn(5, backbone.width), TASK, backbone.name, backbone.fingerprint)
    lm = PromptedLM(backbone, {"own": prompt_of(backbone), "other": prompt_of(backbone, seed=1), "static": static})
    rows = [{**row, "label": "positive"} for row in ROWS] * 2
    names = ["own", "static", "other", "own", "static", "own", "other", "static"]
    options = {"max_new_tokens": 4} if method == "generate" else {}
    call = getattr(lm, method)
    alone = [call([row], name, **options)[0] for row, name in zip(rows, names, strict=True)]
    mixed = call(rows, names, **options)
    if method == "generate":
        assert mixed == alone
    elif method == "log_probs":
        assert mixed == pytest.approx(alone, abs=1e-4)
    else:
        for one, other in zip(mixed, alone, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_inspection_shows_each_rows_own_prompt(backbone):
    prompt = prompt_of(backbone)
    base = inspect(prompt, backbone)
    assert base.row is None
    assert base.note.startswith("This is the base of a conditioned prompt")
    one, other = (inspect(prompt, backbone, row=row) for row in ROWS[:2])
    assert one.row == ROWS[0]
    assert one.geometry.table.column("norm") != other.geometry.table.column("norm")
    coder = backbone.coder(TASK)
    with torch.no_grad():
        batch = backbone.collate(coder.encode_questions([Row(ROWS[0], "row")]))
        made_PH = as_batch_prompt(prompt.on(backbone.device)).embeddings(backbone, batch)[0]
    assert one.geometry.table.column("norm") == pytest.approx(made_PH.norm(dim=1).tolist())


def test_inspection_of_rows_from_the_command_line(run: TrainResult, tmp_path: Path, capsys) -> None:
    capsys.readouterr()
    directory = str(run.directory)
    assert cli.main(["inspect", directory, "--input", "the film was good", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["row"] == {"text": "the film was good"}
    data = ["--data", str(tmp_path / "test.csv")]
    assert cli.main(["inspect", directory, *data, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["row"] is None
    assert plain["importance"] is None
    assert [record["rung"] for record in plain["ladder"]["table"]["records"]][-2:] == [
        "decoding as embeddings",
        "soft prompt",
    ]
    assert cli.main(["inspect", directory, "--input", "the film was good", *data]) == 0
    out = capsys.readouterr().out
    assert out.startswith("the prompt for {'text': ")
    assert "decoding as embeddings" in out


def test_row_for_a_static_prompt_is_refused(backbone):
    static = SoftPrompt(torch.randn(5, backbone.width), TASK, backbone.name, backbone.fingerprint)
    with pytest.raises(PromptError, match="a row for a prompt that is the same for every row"):
        inspect(static, backbone, row=ROWS[0])


def test_broken_weights_are_told(backbone, tmp_path):
    directory = prompt_of(backbone).save(tmp_path / "prompt")
    prompt_of(backbone, seed=1).save(tmp_path / "other")
    (directory / "encoder.safetensors").write_bytes((tmp_path / "other" / "encoder.safetensors").read_bytes())
    with pytest.raises(PromptError, match=r"encoder.safetensors .*its tensor is not the one ptuning.json describes"):
        SoftPrompt.load(directory)
    (directory / "encoder.safetensors").write_bytes(b"x")
    with pytest.raises(PromptError, match=r"encoder.safetensors is truncated or broken"):
        SoftPrompt.load(directory)
