"""A base with a LoRA adapter: its directory is merged, a PeftModel is used with its layers in place."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import review_rows
from transformers import AutoModelForCausalLM

from ptuning import Backbone, PromptClassifier, PromptGenerator
from ptuning.data import Row, Task
from ptuning.errors import ModelError
from ptuning.forward import loss_sum

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's
ROWS = review_rows(16)
QUICK: dict[str, Any] = {"num_virtual_tokens": 3, "max_steps": 2, "dtype": "float32", "device": "cpu"}


@pytest.fixture
def adapted(model_directory: Path) -> Any:
    """A tiny llama with LoRA in all its linear layers, which are not zero."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
    return peft.get_peft_model(base, config)


@pytest.fixture
def directory(adapted: Any, tmp_path: Path) -> Path:
    adapted.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


IDS = torch.tensor([[5, 9, 7, 30]])


def test_a_directory_is_merged(adapted: Any, directory: Path, model_directory: Path) -> None:
    backbone, base = (Backbone.from_pretrained(each, "float32", "cpu") for each in (directory, model_directory))
    found = backbone.model(input_ids=IDS).logits
    torch.testing.assert_close(found, adapted(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, base.model(input_ids=IDS).logits, atol=1e-2)
    assert type(backbone.model) is type(base.model)
    assert not any(each.requires_grad for each in backbone.model.parameters())


@pytest.mark.parametrize("template", ["{prompt:3}the {text} is", "{text} is{prompt:3}"])
def test_layers_in_place_give_the_same_on_every_path(adapted: Any, directory: Path, template: str) -> None:
    merged = Backbone.from_pretrained(directory, "float32", "cpu")
    in_place = Backbone.of(adapted, merged.tokenizer)
    examples = merged.coder(Task(template)).encode([Row(row, "row") for row in ROWS])
    found = []
    for backbone in (merged, in_place):
        for path in ("splice", "auto"):
            prompt_PH = torch.randn(3, backbone.width, generator=torch.Generator().manual_seed(0)).requires_grad_()
            loss = loss_sum(backbone, prompt_PH, backbone.collate(examples), path)
            loss.backward()
            found.append((loss.detach(), prompt_PH.grad))
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-4)


def test_a_prompt_is_tuned_on_it_and_classifies_and_writes(adapted: Any, directory: Path, tmp_path: Path) -> None:
    classifier = PromptClassifier(directory, "{text} is", **QUICK).fit(ROWS)
    own = Backbone.of(adapted, classifier.lm_.backbone.tokenizer)
    loaded = PromptClassifier.load(classifier.save(tmp_path / "prompt"), **{**QUICK, "num_virtual_tokens": 20})
    assert loaded.predict(ROWS).tolist() == classifier.predict(ROWS).tolist()
    assert loaded.lm_.backbone.name == str(directory)
    writer = PromptGenerator(own, "{text} is", **{**QUICK, "dtype": "auto"}).fit(ROWS, "label")
    assert len(writer.predict(ROWS[:2])) == 2


def test_an_adapter_that_cannot_be_merged_is_told(directory: Path, tmp_path: Path) -> None:
    config = json.loads((directory / "adapter_config.json").read_text())
    for change, told in (
        ({"peft_type": "PROMPT_TUNING"}, "an adapter of kind PROMPT_TUNING of the base"),
        ({"base_model_name_or_path": None}, "of the base None; expected a model's directory, or that of a LoRA"),
        ({"r": 3}, "does not fit its base"),
    ):
        (directory / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelError, match=told) as caught:
            Backbone.from_pretrained(directory, "float32", "cpu")
        assert "\n" not in str(caught.value)
    (directory / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config.json cannot be read"):
        Backbone.from_pretrained(directory, "float32", "cpu")


def test_another_kind_of_peft_model_is_refused(model_directory: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    model = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="a PeftModel of kind PROMPT_TUNING; expected one with LoRA"):
        Backbone.of(model, None)
