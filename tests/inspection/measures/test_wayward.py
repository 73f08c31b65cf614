"""Prompts are tuned with a pull to a text, and the table shows what that costs."""

import pytest
import torch
from families import tiny_backbone
from test_ladder import LABELS, tuned

from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.errors import ConfigError, PromptError
from ptuning.inspection.measures.wayward import COLUMNS, Settings, wayward
from ptuning.prompts.soft_prompt import SoftPrompt

TASK = Task("{prompt:5}review: {text} sentiment", verbalizer=LABELS)
ROWS = [
    Row({"text": f"the film was {'good' if i % 2 else 'bad'}", "label": list(LABELS)[i % 2]}, f"row {i}")
    for i in range(16)
]


def test_pulled_prompts_decode_to_the_text_and_the_free_one_does_not():
    backbone = tiny_backbone()
    settings = Settings(max_steps=25, batch_size=8, learning_rate=0.05)
    found = wayward(tuned(backbone, task=TASK), backbone, ROWS, ROWS, " the capital of the film", [20.0], settings)
    free, pulled = found.table
    assert list(free) == list(COLUMNS)
    assert (free["pull"], pulled["pull"]) == (None, 20.0)
    assert pulled["f1"] == 1.0
    assert free["f1"] < 0.5
    assert pulled["decoded"].split() == ["the", "capital", "of", "the", "film"]
    assert free["accuracy_low"] <= free["accuracy"] <= free["accuracy_high"]
    assert [prompt.embeddings_PH.shape for prompt in found.prompts] == [(5, backbone.width)] * 2
    assert found.prompts[1].init["token_ids"] == backbone.tokenizer(" the capital of the film").input_ids[1:]
    assert free["loss"] < 0.7 * evaluated(backbone, found.prompts[0])


def evaluated(backbone, prompt):
    """The loss of the start of the free prompt."""
    from ptuning.evaluation.scoring import evaluate
    from ptuning.inspection.vocabulary.embeddings import Vocabulary

    coder = backbone.coder(TASK)
    start_PH = Vocabulary.of(backbone).rows(prompt.init["token_ids"])
    return evaluate(backbone, start_PH, coder.encode(ROWS), coder.label_ids).loss


def test_model_stays_as_it_was():
    backbone = tiny_backbone()
    before = backbone.weights_sha256()
    wayward(tuned(backbone, task=TASK), backbone, ROWS, ROWS, " a good film", [1.0], Settings(2, 4))
    assert backbone.weights_sha256() == before


@pytest.mark.parametrize("name", ["max_steps", "batch_size", "learning_rate"])
def test_settings_that_train_nothing_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name}=0; expected more than 0"):
        Settings(**{name: 0})


def test_what_cannot_be_pulled_is_refused(backbone):
    with pytest.raises(PromptError, match="a prompt without a task"):
        wayward(SoftPrompt(torch.randn(5, backbone.width)), backbone, ROWS, ROWS, " a film")
    with pytest.raises(PromptError, match="an initial text without tokens"):
        wayward(tuned(backbone, task=TASK), backbone, ROWS, ROWS, "")
