"""The prompt's states stand in the question, and controls are asked the same."""

import pytest
import torch
from families import tiny_backbone
from test_ladder import TASK, tuned

from ptuning.errors import ModelError, PromptError
from ptuning.inspection.measures import verbalise as module
from ptuning.inspection.measures.verbalise import COLUMNS, RANDOM, SOFT, UNTRAINED, verbalise
from ptuning.prompts.initializers import from_ids
from ptuning.prompts.soft_prompt import SoftPrompt


def test_controls_are_asked_too(backbone):
    others = {"topic": tuned(backbone, distance=2.0)}
    table = verbalise(tuned(backbone), backbone, others, max_new_tokens=4).table
    assert table.column("prompt") == [SOFT, UNTRAINED, RANDOM, "other task: topic"]
    assert all(list(record) == list(COLUMNS) for record in table)
    assert table[0]["shared"] == 1.0
    assert all(0 <= each <= 1 for each in table.column("shared"))


def test_at_layer_0_the_states_are_the_prompts_own_embeddings(backbone):
    """A prompt of the filler word itself changes nothing; another one does."""
    texts = [module._BEFORE, module._FILLER, module._AFTER]
    before, filler, after = backbone.tokenizer(texts, add_special_tokens=False).input_ids
    question = torch.tensor([[0, *before, *(filler[-1:] * 5), *after]])
    written = backbone.model.generate(
        question, attention_mask=torch.ones_like(question), max_new_tokens=6, do_sample=False, pad_token_id=2
    )
    expected = backbone.tokenizer.decode(written[0, question.shape[1] :], skip_special_tokens=True).strip()
    fillers = SoftPrompt(from_ids(backbone.vocabulary_VH, filler[-1:] * 5), TASK)
    assert verbalise(fillers, backbone, layers=(0, 0), max_new_tokens=6).table[0]["text"] == expected
    at_0, at_1 = (verbalise(tuned(backbone, 2.0), backbone, layers=(0, k), max_new_tokens=6) for k in (0, 1))
    assert at_0.table[0]["text"] != at_1.table[0]["text"]


def test_nothing_is_left_on_the_model(backbone):
    verbalise(tuned(backbone), backbone, max_new_tokens=2)
    assert not any(module._forward_pre_hooks for module in backbone.model.modules())


def test_layers_that_are_not_there_are_refused(backbone):
    with pytest.raises(PromptError, match=r"layers=\(0, 2\); expected two of the model's 2, from 0"):
        verbalise(tuned(backbone), backbone, layers=(0, 2))


def test_encoder_decoder_is_refused():
    backbone = tiny_backbone("t5")
    with pytest.raises(ModelError, match="verbalise with tiny-t5; expected a causal model with one stack of layers"):
        verbalise(tuned(backbone), backbone)


def test_no_layer_of_the_shared_model_is_hooked(monkeypatch):
    backbone = tiny_backbone("llama")
    prompt = SoftPrompt(torch.randn(3, backbone.width))
    hooked = []
    generate = type(backbone.model).generate

    def noted(model, *arguments, **options):
        hooked.append((model is backbone.model, [bool(each._forward_pre_hooks) for each in backbone.model.modules()]))
        return generate(model, *arguments, **options)

    monkeypatch.setattr(type(backbone.model), "generate", noted)
    verbalise(prompt, backbone, max_new_tokens=1)
    assert hooked
    assert not any(is_shared or any(each) for is_shared, each in hooked)
