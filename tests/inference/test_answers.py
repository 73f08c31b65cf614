"""Many rows are written at once as each is by itself."""

import pytest
import torch

from ptuning.data import Row, Task
from ptuning.forward import ReadOptions
from ptuning.inference import PromptedLM, write_rows
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt

TASK = Task("{prompt:3}the film was {text}", "{label}")
TEXTS = ["a good film", "bad", "the capital of the very very dull plot", "bright and good"]


@pytest.mark.parametrize("path", ["auto", "splice"])
def test_rows_are_written_as_a_prompted_model_writes_each_alone(any_backbone: Backbone, path: str) -> None:
    prompt = SoftPrompt(any_backbone.vocabulary_VH[5:8].clone(), TASK, any_backbone.name, any_backbone.fingerprint)
    lm = PromptedLM(any_backbone, {"p": prompt})
    alone = [lm.generate([{"text": text}], max_new_tokens=6)[0] for text in TEXTS]
    examples = any_backbone.coder(TASK).encode_prompts([Row({"text": text}, "a row") for text in TEXTS], 6)
    options = ReadOptions(batch_size=3, path=path)
    assert write_rows(any_backbone, prompt.on(any_backbone.device), examples, 6, options=options) == alone
    assert len(set(alone)) > 1


def test_an_answer_ends_at_a_stop_string(backbone: Backbone) -> None:
    task = Task("the film was {text}", "{label}")
    examples = backbone.coder(task).encode_prompts([Row({"text": text}, "a row") for text in TEXTS], 8)
    whole = write_rows(backbone, torch.zeros(0, backbone.width), examples, 8)
    stop = whole[0][3:5]
    ended = write_rows(backbone, torch.zeros(0, backbone.width), examples, 8, [stop])
    assert ended == [text.partition(stop)[0] for text in whole]
    assert ended != whole
    assert write_rows(backbone, torch.zeros(0, backbone.width), [], 8) == []
