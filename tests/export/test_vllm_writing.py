"""The directory for clients of vLLM: what it holds, what is refused, and what becomes of a broken one."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from families import tiny_backbone, tiny_model
from safetensors.torch import load_file

from ptuning.data.task import Task
from ptuning.errors import FileError, ModelError, PromptError
from ptuning.export.vllm.embeddings import EMBEDDINGS_FILE, payload
from ptuning.export.vllm.exported import VLLM_FILE, ExportedPrompts
from ptuning.export.vllm.probes import difference, probes_of
from ptuning.export.vllm.writing import write_vllm
from ptuning.model import Backbone
from ptuning.prompts import encoders
from ptuning.prompts.soft_prompt import SoftPrompt

TASK = Task("{prompt:3}review: {text}", verbalizer={"bad": " bad", "good": " good"})


def prompt_for(base: Path) -> SoftPrompt:
    backbone = Backbone.from_pretrained(base, "float32", "cpu")
    return SoftPrompt(torch.randn(3, backbone.width), TASK, str(base), backbone.fingerprint)


def test_it_holds_what_a_client_needs_and_no_other_weights(model_directory: Path, tmp_path: Path) -> None:
    prompt = prompt_for(model_directory)
    found = write_vllm(model_directory, {"film": prompt}, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / EMBEDDINGS_FILE)
    assert sorted(tensors) == ["prompt.film", "vocabulary"]
    backbone = Backbone.from_pretrained(model_directory, "float32", "cpu")
    assert torch.equal(tensors["vocabulary"], backbone.vocabulary_VH)
    assert torch.equal(tensors["prompt.film"], prompt.embeddings_PH)
    described = json.loads((tmp_path / "out" / VLLM_FILE).read_text())
    assert described["files"] == sorted(each.name for each in (tmp_path / "out").iterdir())
    assert described["base"]["name"] == str(model_directory)
    assert (found.tasks, found.end_ids, found.max_positions) == (
        {"film": TASK},
        backbone.end_ids,
        backbone.max_positions,
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"vllm serve {model_directory} --enable-prompt-embeds --dtype float32" in card
    assert 'client.classify([{"text": "..."}], "film")' in card
    assert "0.26 or newer (CVE-2026-73557 was mended there)" in card


def test_the_servers_precision_is_the_files_own_or_the_one_that_is_given(model_directory: Path, tmp_path: Path) -> None:
    prompt = prompt_for(model_directory)
    found = write_vllm(model_directory, {"film": prompt}, tmp_path / "out", dtype="bfloat16").embeddings
    assert (found.dtype, found.width) == ("bfloat16", 32)
    assert torch.equal(found.of([-1, -2, -3], "film"), prompt.embeddings_PH.bfloat16())


def test_a_prompt_saved_by_peft_stands_before_the_text(model_directory: Path, tmp_path: Path) -> None:
    prompt = dataclasses.replace(prompt_for(model_directory), task=None)
    found = write_vllm(model_directory, {"film": prompt}, tmp_path / "out")
    assert found.tasks["film"].template == "{prompt:3}{text}"


def test_probes_tell_models_apart(model_directory: Path) -> None:
    backbone, other = tiny_backbone(), tiny_backbone(seed=1)
    (probe, *_), (others, *_) = probes_of(backbone), probes_of(other)
    with torch.no_grad():
        logits_TV = backbone.model(torch.tensor([probe.ids])).logits[0]
    log_probs_V = logits_TV[-1].log_softmax(dim=0)
    expected = dict(enumerate(log_probs_V.tolist()))
    assert difference(probe, expected) < 1e-5
    assert sorted(map(int, probe.log_probs)) == sorted(log_probs_V.topk(8).indices.tolist())
    assert difference(others, expected) > 0.5
    assert probes_of(Backbone.from_pretrained(model_directory, "float32", "cpu"))[0] == probe


def test_a_payload_holds_nothing_but_its_rows() -> None:
    whole_VH = torch.randn(1000, 8)
    assert len(payload(whole_VH[:2])) < 3000
    assert payload(torch.nn.Parameter(whole_VH[:2])) == payload(whole_VH[:2].clone())


def test_prompts_and_bases_that_do_not_fit_are_told(model_directory: Path, tmp_path: Path) -> None:
    prompt = prompt_for(model_directory)
    conditioned = dataclasses.replace(prompt, weights=encoders.Conditioned(prompt.embeddings_PH).state_dict())
    other = dataclasses.replace(prompt, fingerprint=tiny_backbone(seed=1).fingerprint)
    for given, message in (
        ({"film": conditioned}, "a conditioned prompt for vLLM: its virtual tokens depend on each row's text"),
        ({"film": prompt.disabled()}, "a prompt without virtual tokens for vLLM"),
        ({"film": other}, "another base gives it another meaning"),
        ({"a film": prompt}, "a prompt named 'a film'"),
        ({}, "no prompts"),
    ):
        with pytest.raises(PromptError, match=message):
            write_vllm(model_directory, given, tmp_path / "out")
    write_vllm(model_directory, {"film": other}, tmp_path / "out", allow_other_base=True)
    for each in tiny_model("t5"):
        each.save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="an encoder-decoder, for vLLM, which takes embeddings for causal models only"):
        write_vllm(tmp_path / "t5", {"film": prompt}, tmp_path / "pair")


def test_exporting_again_replaces_and_what_is_not_ours_is_refused(model_directory: Path, tmp_path: Path) -> None:
    prompt, out = prompt_for(model_directory), tmp_path / "out"
    write_vllm(model_directory, {"film": prompt}, out)
    write_vllm(model_directory, {"again": prompt}, out)
    assert list(ExportedPrompts.load(out).tasks) == ["again"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match=r"holds notes\.txt, which is not part of an export for vLLM"):
        write_vllm(model_directory, {"film": prompt}, out)


def test_broken_directories_are_told(model_directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PromptError, match=r"has no ptuning_vllm\.json; expected a directory that `ptuning export"):
        ExportedPrompts.load(model_directory)

    def spoiled(name: str, content: bytes, message: str) -> None:
        write_vllm(model_directory, {"film": prompt_for(model_directory)}, out)
        (out / name).write_bytes(content)
        with pytest.raises(PromptError, match=message):
            ExportedPrompts.load(out)
        shutil.rmtree(out)

    write_vllm(model_directory, {"film": prompt_for(model_directory)}, out)
    described = json.loads((out / VLLM_FILE).read_text())
    spoiled(EMBEDDINGS_FILE, b"half", r"embeddings\.safetensors is missing or broken")
    spoiled("tokenizer.json", b"half", "is a broken export")
    spoiled(VLLM_FILE, b"{", "is a broken export")
    write_vllm(model_directory, {"film": prompt_for(model_directory)}, out)
    for changes, message in (
        ({"format_version": 9}, "has format version 9; expected 1. Upgrade ptuning"),
        ({"prompts": {"film": {**described["prompts"]["film"], "cut_side": "up"}}}, "cut_side"),
        ({"prompts": {"other": described["prompts"]["film"]}}, "missing or broken"),
    ):
        (out / VLLM_FILE).write_text(json.dumps({**described, **changes}))
        with pytest.raises(PromptError, match=message):
            ExportedPrompts.load(out)
