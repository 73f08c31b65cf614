"""Scores that are not numbers are told, with what is to blame."""

import pytest
import torch
from families import tiny_backbone

from ptuning.data.task import Task
from ptuning.errors import ModelError, PromptError
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.model import Backbone
from ptuning.prompts.soft_prompt import SoftPrompt

TASK = Task("{prompt:3}review: {text}", verbalizer={"good": " good", "bad": " bad film"})
ROWS = [{"text": "a dull plot", "label": "bad"}]


def prompted(backbone: Backbone, scale: float = 1.0) -> PromptedLM:
    chance = torch.Generator().manual_seed(0)
    tensor = scale * torch.randn(3, backbone.width, generator=chance)
    prompt = SoftPrompt(tensor, TASK, task_type=backbone.task_type)
    return PromptedLM(backbone, {"it": prompt})


ASKED = {
    "classify": lambda lm: lm.classify(ROWS),
    "log_probs": lambda lm: lm.log_probs(ROWS),
    "generate": lambda lm: lm.generate(ROWS, max_new_tokens=2),
}


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("asked", ASKED)
def test_a_broken_weight_is_named(family: str, asked: str) -> None:
    backbone = tiny_backbone(family)
    lm = prompted(backbone)
    ASKED[asked](lm)
    name, weight = list(backbone.model.named_parameters())[-3]
    with torch.no_grad():
        weight.view(-1)[0] = torch.nan
    with pytest.raises(ModelError, match=f"model tiny-{family}, whose weight {name} holds NaN or infinity"):
        ASKED[asked](lm)


@pytest.mark.parametrize("asked", ASKED)
def test_an_overflow_is_told(asked: str) -> None:
    backbone = tiny_backbone()
    backbone.model.half()
    lm = prompted(backbone, 3e4)
    with pytest.raises(ModelError, match=r"overflow in float16; expected numbers. Load the model in float32"):
        ASKED[asked](lm)


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.full((3, 32), torch.nan), "NaN or infinity"),
        (torch.full((3, 32), torch.inf), "NaN or infinity"),
        (torch.zeros(3, 32, dtype=torch.long), "a prompt of int64 numbers"),
    ],
)
def test_a_prompt_holds_numbers(tensor: torch.Tensor, told: str) -> None:
    with pytest.raises(PromptError, match=told):
        SoftPrompt(tensor, TASK)
