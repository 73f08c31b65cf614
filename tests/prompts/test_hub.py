"""A prompt goes to the hub and comes back the same, with its card; what fails there is told in one line."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import local_hub
import pytest
import torch
from huggingface_hub import ModelCard, constants
from local_hub import TOKEN, LocalHub

from ptuning.data.task import Task
from ptuning.errors import PromptError
from ptuning.export.names import load_prompts
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.model import Backbone, hub_answers
from ptuning.prompts.encoders import Conditioned
from ptuning.prompts.soft_prompt import SoftPrompt

NAME = "ada/film"
TASK = Task("{prompt:4}review: {text}", verbalizer={"negative": " negative", "positive": " positive"})
RESULTS = {
    "the same words, no soft prompt": {"num_rows": 1000, "accuracy": 0.5, "interval": [0.47, 0.53], "loss": 0.7},
    "soft prompt": {"num_rows": 1000, "accuracy": 0.875, "interval": [0.853, 0.894], "loss": 0.3125, "macro_f1": 0.87},
}
VERDICT = {"word": "PARTIAL", "sentence": "Half <b>of it</b>.", "effect": None, "judged_on": "500 rows of a.csv"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with local_hub.serving() as found:
        local_hub.use(monkeypatch, found, tmp_path / "cache")
        yield found


def prompt_of(backbone: Backbone, seed: int = 0) -> SoftPrompt:
    embeddings_PH = torch.randn(4, backbone.width, generator=torch.Generator().manual_seed(seed))
    training = {"results_of": "test rows", "data": {"train": "a/train.csv", "test": "a/test.csv"}}
    return SoftPrompt(
        embeddings_PH,
        TASK,
        "org/base",
        backbone.fingerprint,
        training=training,
        results=RESULTS,
        verdict=VERDICT,
        encoder={"name": "embedding"},
    )


def files_of(prompt: SoftPrompt, directory: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in prompt.save(directory).iterdir()}


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's, of its HTTP library
@pytest.mark.parametrize("uses_lfs", [False, True])
def test_a_pushed_prompt_comes_back_bit_by_bit(
    hub: LocalHub, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, uses_lfs: bool
) -> None:
    hub.uses_lfs = uses_lfs
    if uses_lfs:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    pushed = prompt_of(backbone)
    address = pushed.push_to_hub(NAME, token=TOKEN, private=True, commit_message="the first one")
    held = hub.repositories[NAME]
    assert address == f"{hub.url}/{NAME}/commit/{held.branches['main']}"
    assert held.private
    assert held.messages == ["initial commit", "the first one"]
    assert bool(hub.objects) == uses_lfs
    found = SoftPrompt.from_pretrained(NAME, token=TOKEN)
    assert torch.equal(found.embeddings_PH, pushed.embeddings_PH)
    for field in dataclasses.fields(SoftPrompt)[1:]:
        assert getattr(found, field.name) == getattr(pushed, field.name), field.name


def test_another_kind_of_prompt_leaves_no_file_of_the_older_one(hub: LocalHub, backbone: Backbone) -> None:
    encoder = Conditioned(torch.zeros(4, backbone.width))
    conditioned = SoftPrompt(encoder.base_PH, TASK, weights=encoder.state_dict(), encoder={"name": "conditioned"})
    conditioned.push_to_hub(NAME, token=TOKEN)
    assert SoftPrompt.from_pretrained(NAME).is_conditioned
    prompt_of(backbone).push_to_hub(NAME, token=TOKEN)
    held = hub.repositories[NAME]
    assert set(held.commits[held.branches["main"]]) == {
        *(".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "ptuning.json")
    }
    assert not SoftPrompt.from_pretrained(NAME).is_conditioned


def test_a_revision_is_a_branch_a_commit_or_part_of_the_name(hub: LocalHub, backbone: Backbone) -> None:
    first, second = prompt_of(backbone), prompt_of(backbone, seed=1)
    first.push_to_hub(NAME, token=TOKEN)
    commit = second.push_to_hub(NAME, token=TOKEN, revision="v2").rpartition("/")[2]
    for place, revision in ((NAME, "v2"), (NAME, commit), (f"{NAME}@v2", None), (f"{NAME}@{commit}", None)):
        found = SoftPrompt.from_pretrained(place, revision=revision)
        assert torch.equal(found.embeddings_PH, second.embeddings_PH)
    assert torch.equal(SoftPrompt.from_pretrained(NAME).embeddings_PH, first.embeddings_PH)
    with pytest.raises(PromptError, match=r"ada/film@v2 with revision v3; expected one revision"):
        SoftPrompt.from_pretrained(f"{NAME}@v2", revision="v3")


def test_only_a_prompts_own_files_are_downloaded(hub: LocalHub, backbone: Backbone, tmp_path: Path) -> None:
    others = {
        **dict.fromkeys(("code.py", "adapter_model.bin", "checkpoints/last.pt", "sub/ptuning.json"), b"no"),
        **dict.fromkeys(("../../outside.json", "/etc/ptuning.json", "../ptuning.json"), b"{}"),
    }
    hub.holds(NAME, {**files_of(prompt_of(backbone), tmp_path / "prompt"), **others})
    SoftPrompt.from_pretrained(NAME)
    assert hub.downloaded() == {"ptuning.json", "adapter_config.json", "README.md", "adapter_model.safetensors"}
    assert {each.name for each in tmp_path.rglob("*") if each.is_symlink()} == hub.downloaded()
    assert not list(tmp_path.rglob("outside.json"))


def test_a_prompt_that_was_downloaded_is_read_without_the_hub(
    hub: LocalHub, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = prompt_of(backbone)
    prompt.push_to_hub(NAME, token=TOKEN)
    SoftPrompt.from_pretrained(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert torch.equal(SoftPrompt.from_pretrained(NAME).embeddings_PH, prompt.embeddings_PH)
    assert len(hub.requests) == asked


def test_a_path_that_exists_always_wins(
    hub: LocalHub, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prompt_of(backbone).push_to_hub(NAME, token=TOKEN)
    monkeypatch.chdir(tmp_path)
    here = prompt_of(backbone, seed=1)
    here.save(NAME)
    asked = len(hub.requests)
    assert torch.equal(SoftPrompt.from_pretrained(NAME, revision="v2").embeddings_PH, here.embeddings_PH)
    with pytest.raises(PromptError, match="prompt directory ada/other does not exist"):
        SoftPrompt.from_pretrained(Path("ada/other"))
    assert len(hub.requests) == asked


def lora(hub: LocalHub) -> None:
    hub.holds(NAME, {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": b"large"})


def huge(hub: LocalHub) -> None:
    hub.holds(NAME, {"ptuning.json": b"{}", "adapter_model.safetensors": b"{}"}).claimed = {
        "adapter_model.safetensors": 10**12
    }


REFUSALS = {
    r"ada/film: no directory here, and the hub shows no such repository \(HTTP status 401\); expected a saved "
    r"prompt's directory, or its name on the hub\. Check the name; for a private repository log in": lambda hub: None,
    r"no such repository \(HTTP status 401\).*set HF_TOKEN, or give token=": lambda hub: hub.holds(
        NAME, {}, private=True
    ),
    r"the hub has no such revision; expected a branch, tag or commit": lambda hub: hub.holds(NAME, {}, "v1"),
    "ada/film on the hub, with neither ptuning.json nor adapter_config.json; expected a saved prompt's": lambda hub: (
        hub.holds(NAME, {"model.safetensors": b"a whole model"}, "v9")
    ),
    "is a PEFT adapter of type LORA for CAUSAL_LM": lora,
    "adapter_model.safetensors of ada/film has 1,000,000,000,000 bytes; expected at most": huge,
}


@pytest.mark.parametrize("told", REFUSALS)
def test_what_the_hub_does_not_give_is_told(hub: LocalHub, told: str) -> None:
    REFUSALS[told](hub)
    revision = {"has no such revision": "v9", "with neither": "v9"}
    with pytest.raises(PromptError, match=told) as raised:
        SoftPrompt.from_pretrained(NAME, revision=next((at for key, at in revision.items() if key in told), None))
    assert "\n" not in str(raised.value)
    assert "adapter_model.safetensors" not in hub.downloaded()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("HF_HUB_OFFLINE", True, "no directory here, and HF_HUB_OFFLINE forbids asking the hub.*Unset HF_HUB_OFFLINE"),
        ("ENDPOINT", "http://127.0.0.1:9", "no directory here, and the hub does not answer; .*Check the network, or"),
    ],
)
def test_a_hub_that_cannot_be_asked_is_told(
    hub: LocalHub, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, name: str, value: object, told: str
) -> None:
    monkeypatch.setattr(constants, name, value)
    assert not hub_answers()
    with pytest.raises(PromptError, match=f"{NAME}: {told}"):
        SoftPrompt.from_pretrained(NAME)
    with pytest.raises(PromptError, match=f"{NAME} cannot be written: .*{told.split('.*')[1][:5]}"):
        prompt_of(backbone).push_to_hub(NAME, token=TOKEN)
    assert hub.requests == []


def test_a_push_that_the_hub_refuses_is_told(hub: LocalHub, backbone: Backbone) -> None:
    with pytest.raises(PromptError, match=r"ada/film cannot be written: .* \(HTTP status 401\); expected a repository"):
        prompt_of(backbone).push_to_hub(NAME, token=False)
    with pytest.raises(PromptError, match="a repository named 'ada/film/x'; expected user/name"):
        prompt_of(backbone).push_to_hub("ada/film/x", token=TOKEN)
    assert hub.repositories == {}


def test_a_base_in_a_directory_is_named_by_the_caller(
    hub: LocalHub, backbone: Backbone, model_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    local = dataclasses.replace(prompt_of(backbone), base_name=str(model_directory))
    local.push_to_hub(NAME, token=TOKEN)
    assert f"{model_directory} is a directory of this machine: name the base on the hub" in caplog.text
    caplog.clear()
    local.push_to_hub(NAME, token=TOKEN, base_name="org/base")
    assert caplog.text == ""
    assert SoftPrompt.from_pretrained(NAME).base_name == "org/base"


def test_the_card_is_the_hubs_own(hub: LocalHub, backbone: Backbone, tmp_path: Path) -> None:
    prompt_of(backbone).push_to_hub(NAME, token=TOKEN)
    held = hub.repositories[NAME]
    (tmp_path / "README.md").write_bytes(held.commits[held.branches["main"]]["README.md"])
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.base_model, card.data.library_name) == ("org/base", "ptuning")
    assert card.data.tags == ["prompt-tuning", "p-tuning"]
    assert card.data.model_name == "film"
    measured = {each.metric_type: each for each in card.data.eval_results}
    assert {kind: each.metric_value for kind, each in measured.items()} == {
        "accuracy": 0.875,
        "f1": 0.87,
        "loss": 0.3125,
    }
    accuracy = measured["accuracy"]
    assert (accuracy.task_type, accuracy.dataset_name, accuracy.dataset_split) == (
        "text-classification",
        "test.csv",
        "test",
    )
    assert accuracy.dataset_args == {"num_rows": 1000}
    assert accuracy.metric_args == {"interval_95": [0.853, 0.894]}
    assert '{"task": "ada/film"}' in card.text
    assert "{prompt:4}review: {text}" in card.text
    assert f"hidden_size {backbone.width}" in card.text
    assert r"**PARTIAL**, judged on `500 rows of a.csv`. Half \<b\>of it\</b\>." in card.text
    assert str(ModelCard(str(card))) == str(card)


def test_a_model_and_an_export_take_a_name(hub: LocalHub, backbone: Backbone, model_directory: Path) -> None:
    prompt_of(backbone).push_to_hub(NAME, token=TOKEN)
    lm = PromptedLM.from_pretrained(model_directory, {"film": NAME}, dtype="float32", device="cpu")
    assert lm.classify([{"text": "a film"}])[0].label in ("negative", "positive")
    assert list(load_prompts([f"{NAME}@main"])) == ["film"]


def test_commands_take_a_name(hub: LocalHub, backbone: Backbone, model_directory: Path, tmp_path: Path) -> None:
    prompt_of(backbone).push_to_hub(NAME, token=TOKEN)
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}

    def ptuning(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ptuning", *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    found = ptuning("predict", NAME, "--model", str(model_directory), "--input", "a film", "--device", "cpu", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["answers"][0]["label"] in ("negative", "positive")
    missing = ptuning("inspect", "ada/other", "--model", str(model_directory))
    assert missing.returncode == 2
    (line,) = missing.stderr.splitlines()
    assert line.startswith("ptuning: ada/other: no directory here, and the hub shows no such repository")
    exported = ptuning("export", f"{NAME}@main", "--to", "npy", "--output", "film.npy")
    assert exported.returncode == 0, exported.stderr
