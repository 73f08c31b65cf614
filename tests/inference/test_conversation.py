"""A conversation's turns are what the whole would be, read from the beginning."""

import pytest
import torch
from families import tiny_backbone
from transformers import StoppingCriteria

from ptuning.data.examples import Example
from ptuning.data.task import Task
from ptuning.errors import ConfigError, DataError, ModelError, PromptError
from ptuning.forward.splice import splice
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.prompts.encoders import Conditioned
from ptuning.prompts.soft_prompt import SoftPrompt


def prompted(backbone, **task):
    drawn = torch.randn(4, backbone.width, generator=torch.Generator().manual_seed(0)) * backbone.vocabulary_VH.std()
    task = Task(**{"template": "{prompt:4}{text}", "answer": "{answer}", **task})
    return PromptedLM(backbone, {"p": SoftPrompt(drawn, task, backbone.name, backbone.fingerprint)})


def from_the_beginning(lm, ids, num_tokens):
    """Greedy tokens after ids, the whole of which is read anew each time; without the end."""
    written = []
    while len(written) < num_tokens:
        batch = lm.backbone.collate([Example([*ids, *written], [0])])
        with torch.no_grad():
            token = int(splice(lm.backbone, lm.prompts["p"].embeddings_PH, batch).argmax())
        if token in lm.backbone.end_ids:
            break
        written.append(token)
    return written


def turns(lm, texts):
    """Sends texts, and checks each answer against the whole, read from the beginning; returns all ids."""
    conversation, tokenizer = lm.conversation(), lm.backbone.tokenizer
    before = [-1, -2, -3, -4, *tokenizer(texts[0]).input_ids]
    for i, text in enumerate(texts):
        before = [*conversation.ids, *tokenizer(text, add_special_tokens=False).input_ids] if i else before
        answer = conversation.send(text, max_new_tokens=6)
        expected = from_the_beginning(lm, before, 6)
        assert conversation.ids == [*before, *expected]
        assert answer == tokenizer.decode(expected, skip_special_tokens=True)
    return conversation.ids


@pytest.mark.parametrize("family", ["llama", "mistral", "mamba", "lfm2"])
def test_each_answer_is_what_follows_the_whole(family):
    ids = turns(prompted(tiny_backbone(family)), ["the film", " and the plot", " was"])
    assert len(ids) > 20


def test_only_what_is_new_is_run(backbone, monkeypatch):
    lengths = []
    forward = backbone.model.forward

    def noted(**inputs):
        given = inputs.get("inputs_embeds")
        lengths.append((given if given is not None else inputs["input_ids"]).shape[1])
        return forward(**inputs)

    monkeypatch.setattr(backbone.model, "forward", noted)
    conversation = prompted(backbone).conversation()
    conversation.send("the film was very good", max_new_tokens=1)
    conversation.send(" and", max_new_tokens=1)
    num_first = len(backbone.tokenizer("the film was very good").input_ids)
    assert lengths == [4, num_first, 2]  # virtual tokens; the first turn; the answer's one token and a word


def test_turns_are_framed_by_the_chat_template(backbone):
    conversation = prompted(backbone, chat_template=True).conversation()
    answer = conversation.send("the film", max_new_tokens=3)
    conversation.send("a plot", max_new_tokens=3)
    text = backbone.tokenizer.decode([i for i in conversation.ids if i >= 0])
    assert text.startswith(f"<s>user: the film</s><s>assistant:{answer}</s><s>user: a plot</s><s>assistant:")


def test_words_of_special_tokens_stay_words(backbone):
    conversation = prompted(backbone).conversation()
    conversation.send("a", max_new_tokens=1)
    before = len(conversation.ids)
    conversation.send("</s>", max_new_tokens=1)
    assert 1 not in conversation.ids[before:-1]


def test_conditioned_prompt_stays_that_of_the_first_turn(backbone):
    torch.manual_seed(0)
    encoder = Conditioned(torch.randn(4, backbone.width), 8)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    task = Task("{prompt:4}{text}", "{answer}")
    prompt = SoftPrompt(encoder.prompt_PH, task, backbone.name, backbone.fingerprint, weights=encoder.state_dict())
    conversation = PromptedLM(backbone, {"p": prompt}).conversation()
    conversation.send("the film", max_new_tokens=2)
    first_PH = conversation._prompt_PH
    conversation.send(" and", max_new_tokens=2)
    assert torch.equal(conversation._prompt_PH, first_PH)
    assert not torch.equal(first_PH, prompt.embeddings_PH)


def test_sampling_and_stop_strings_are_taken(backbone):
    conversation = prompted(backbone).conversation()
    torch.manual_seed(0)
    first = conversation.send("the film", max_new_tokens=5, do_sample=True)
    torch.manual_seed(0)
    assert prompted(backbone).conversation().send({"text": "the film"}, max_new_tokens=5, do_sample=True) == first
    free = prompted(backbone).conversation().send("the film", max_new_tokens=20)
    stop = free[1]
    assert (
        prompted(backbone).conversation().send("the film", max_new_tokens=20, stop_strings=[stop])
        == free[: free.index(stop)]
    )


def test_mistakes_are_told(backbone, monkeypatch):
    lm = prompted(backbone)
    conversation = lm.conversation()
    with pytest.raises(DataError, match="the first turn has no column 'text'"):
        conversation.send({"txt": "a"})
    conversation.send("a", max_new_tokens=1)
    for turn in ("", {"text": "b"}):
        with pytest.raises(DataError, match=r"a turn .*; expected text"):
            conversation.send(turn)
    with pytest.raises(PromptError, match="a conversation with beams"):
        conversation.send("b", num_beams=2)
    with pytest.raises(DataError, match="a text for a template with the columns"):
        prompted(backbone, template="{prompt:4}{a}{b}").conversation().send("x")
    pair, task = tiny_backbone("t5"), Task("{prompt:2}{text}", "{answer}")
    prompt = SoftPrompt(torch.zeros(2, 32), task, pair.name, pair.fingerprint, task_type="SEQ_2_SEQ_LM")
    lm = PromptedLM(pair, {"p": prompt})
    with pytest.raises(ModelError, match="a conversation with tiny-t5, an encoder-decoder"):
        lm.conversation()


def test_conversation_beyond_the_models_positions_is_told():
    conversation = prompted(tiny_backbone("gpt2")).conversation()
    conversation.send("the film", max_new_tokens=40)
    with pytest.raises(DataError, match=r"a row of \d+ tokens.*; expected at most 96"):
        conversation.send(" and", max_new_tokens=60)


def test_chat_template_without_a_second_turn_is_told(backbone, monkeypatch):
    conversation = prompted(backbone, chat_template=True).conversation()
    conversation.send("the film", max_new_tokens=1)
    monkeypatch.setattr(backbone.tokenizer, "chat_template", "{{ messages[0]['content'] }}")
    with pytest.raises(ConfigError, match="a second turn with a chat template that cannot frame one"):
        conversation.send("a")


@pytest.mark.parametrize("num_steps", [1, 3])
def test_turn_that_is_interrupted_is_as_if_it_had_not_been_said(backbone, monkeypatch, num_steps):
    def sent(texts):
        conversation = prompted(backbone).conversation()
        return conversation, [conversation.send(text, max_new_tokens=5) for text in texts]

    class Interrupts(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            self.num_steps = getattr(self, "num_steps", 0) + 1
            if self.num_steps == num_steps:
                raise KeyboardInterrupt
            return torch.zeros(len(input_ids), dtype=torch.bool)

    _, expected = sent(["the film", " and"])
    conversation, _ = sent(["the film"])
    before = list(conversation.ids)
    with pytest.raises(KeyboardInterrupt):
        conversation.send(" but", stopping_criteria=[Interrupts()])
    assert conversation.ids == before
    assert conversation.send(" and", max_new_tokens=5) == expected[1]
    conversation = prompted(backbone).conversation()
    with pytest.raises(KeyboardInterrupt):
        conversation.send("dull", stopping_criteria=[Interrupts()])
    assert conversation.send("the film", max_new_tokens=5) == expected[0]


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}])
def test_options_that_need_a_cache_of_their_own_are_refused(backbone, options):
    with pytest.raises(PromptError, match="a cache of transformers' own"):
        prompted(backbone).conversation().send("a", **options)


def test_first_turn_that_is_cut_is_told(backbone, caplog):
    prompted(backbone, max_length=20).conversation().send("good " * 30, max_new_tokens=1)
    assert "the first turn: 1 of 1 rows lost the end of their text" in caplog.text
