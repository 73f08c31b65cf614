"""Prompts are listed unread, read when first used, run once, kept while nothing changes, and let go."""

import dataclasses
import os

import pytest
import torch
from families import tiny_backbone

from ptuning.data.task import Task
from ptuning.errors import PromptError
from ptuning.inference import prompt_library as library
from ptuning.inference.prompt_library import PromptLibrary
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.prompts import storage
from ptuning.prompts.encoders import Conditioned
from ptuning.prompts.soft_prompt import SoftPrompt

LABELS = {"negative": " negative", "positive": " positive"}
RESULTS = {"soft prompt": {"num_rows": 10, "accuracy": 0.9, "interval": [0.6, 0.98], "loss": 0.5, "num_cut": 0}}


def prompt_of(backbone, num_virtual_tokens=4, seed=0, **changes):
    drawn = torch.randn(num_virtual_tokens, backbone.width, generator=torch.Generator().manual_seed(seed))
    task = Task(f"{{prompt:{num_virtual_tokens}}}review: {{text}}", verbalizer=LABELS)
    made = SoftPrompt(drawn, task, backbone.name, backbone.fingerprint, results=RESULTS)
    return dataclasses.replace(made, **changes)


@pytest.fixture
def directory(backbone, tmp_path):
    """Three prompts: one by itself, one in a run's directory, one that PEFT could have written."""
    prompt_of(backbone).save(tmp_path / "one")
    prompt_of(backbone, 7, seed=1).save(tmp_path / "run" / "prompt")
    prompt_of(backbone, seed=2).save(tmp_path / "theirs")
    (tmp_path / "theirs" / "ptuning.json").unlink()
    (tmp_path / "notes").mkdir()
    return tmp_path


@pytest.fixture
def runs(backbone, monkeypatch):
    """The shapes of the model's runs from here on, what it can do having been found out by running it."""
    assert backbone.supports_joint_prefix
    assert backbone.ignores_left_padding
    assert backbone.ignores_padding_gaps
    assert backbone._token_by_token_weights
    shapes = []
    run = type(backbone).run

    def noted(self, **inputs):
        shapes.append(tuple(inputs["inputs_embeds"].shape[:2]))
        return run(self, **inputs)

    monkeypatch.setattr(type(backbone), "run", noted)
    return shapes


def test_directory_is_listed_without_reading_a_number(backbone, directory, monkeypatch):
    monkeypatch.setattr(storage, "load", pytest.fail)
    held = PromptLibrary(backbone, directory)
    assert list(held) == ["one", "run", "theirs"]
    one, run, theirs = held.infos()
    assert (one.num_virtual_tokens, one.template, one.labels) == (4, "{prompt:4}review: {text}", tuple(LABELS))
    assert (one.results, one.num_bytes) == (RESULTS, 0)
    assert (run.num_virtual_tokens, theirs.num_virtual_tokens, theirs.template) == (7, 4, None)
    lines = str(held).splitlines()
    assert lines[0].startswith("one: 4 virtual tokens; '{prompt:4}review: {text}'; negative | positive; soft prompt: ")
    assert "accuracy 0.900 (0.00 MB held)" in lines[0]
    assert str(PromptLibrary(backbone, {})) == "no prompts"


def test_a_bad_neighbour_makes_no_other_prompt_unusable(backbone, directory, monkeypatch):
    for number, text in enumerate(("[" * 100_000, '{"format_version": 1, "results": 5}', '{"format_version": 2}', "")):
        (directory / f"broken{number}").mkdir()
        (directory / f"broken{number}" / "ptuning.json").write_text(text)
    (directory / "pipe").mkdir()
    os.mkfifo(directory / "pipe" / "ptuning.json")
    (directory / "device").mkdir()
    (directory / "device" / "ptuning.json").symlink_to("/dev/zero")
    lm = PromptedLM(backbone, directory)
    told = {info.name: info.problem for info in lm.prompts.infos()}
    assert {name for name, problem in told.items() if problem} == {f"broken{number}" for number in range(4)}
    assert not any("\n" in problem for problem in told.values() if problem)
    assert len(lm.classify([{"text": "a good film"}], prompt="one")) == 1


def test_prompt_is_read_when_it_is_first_used(backbone, directory, monkeypatch):
    read = []
    load = SoftPrompt.load.__func__
    monkeypatch.setattr(SoftPrompt, "load", classmethod(lambda cls, path: read.append(path.name) or load(cls, path)))
    lm = PromptedLM(backbone, directory)
    assert read == []
    for _ in range(2):
        lm.classify([{"text": "a"}], "one")
    assert read == ["one"]
    assert len(lm.prompts) == 3


def test_each_prompt_is_run_once(backbone, runs):
    lm = PromptedLM(backbone, {"a": prompt_of(backbone, 4), "b": prompt_of(backbone, 6, seed=1)})
    rows = [{"text": text} for text in ("good", "a bad film", "the plot")]
    lm.classify(rows, ["a", "b", "a"])
    lm.generate(rows, ["b", "b", "a"], max_new_tokens=2)
    lm.classify(rows, "b")
    num_words = len(backbone.tokenizer("review: ").input_ids) - 1  # the space may join the text
    assert sorted(shape for shape in runs if shape[0] == 1) == [(1, 4 + num_words), (1, 6 + num_words)]


def test_what_is_kept_is_made_again_after_a_change(backbone, runs):
    lm = PromptedLM(backbone, {"a": prompt_of(backbone)})
    lm.classify([{"text": "a"}] * 2)
    first = lm.prompts.ready("a")
    assert lm.prompts.ready("a") is first
    lm.prompts["a"] = prompt_of(backbone, seed=1)
    replaced = lm.prompts.ready("a")
    keys_before = replaced.prefix.layers[0][0]
    assert not torch.equal(replaced.made, first.made)
    lm.prompts["a"].embeddings_PH[0] += 1
    changed = lm.prompts.ready("a")
    assert torch.equal(changed.made, lm.prompts["a"].embeddings_PH)
    assert not torch.equal(changed.prefix.layers[0][0], keys_before)
    assert len([shape for shape in runs if shape[0] == 1]) == 3


def test_what_is_kept_follows_the_models_precision():
    own = tiny_backbone()
    lm = PromptedLM(own, {"a": prompt_of(own)})
    lm.classify([{"text": "a"}])
    own.model.to(torch.bfloat16)
    ready = lm.prompts.ready("a")
    assert {ready.made.dtype, ready.prefix.layers[0][0].dtype} == {torch.bfloat16}
    lm.classify([{"text": "a"}])


def test_answers_are_those_of_the_new_prompt_after_it_is_replaced(backbone):
    rows = [{"text": "the film"}, {"text": "a dull plot"}]
    lm = PromptedLM(backbone, {"a": prompt_of(backbone)})
    before = lm.classify(rows, "a")
    lm.prompts["a"] = prompt_of(backbone, 6, seed=3)
    assert lm.classify(rows, "a") == PromptedLM(backbone, {"a": prompt_of(backbone, 6, seed=3)}).classify(rows)
    assert lm.classify(rows, "a") != before


def test_prompts_come_and_go_without_the_model(backbone, directory):
    lm = PromptedLM(backbone, {"a": prompt_of(backbone)})
    lm.prompts["b"] = directory / "one"
    lm.classify([{"text": "a"}] * 2, ["a", "b"])
    del lm.prompts["a"]
    assert list(lm.prompts) == ["b"]
    with pytest.raises(PromptError, match="prompt='a'; expected one of b"):
        lm.classify([{"text": "a"}], "a")
    with pytest.raises(PromptError, match="does not exist"):
        lm.prompts["c"] = directory / "nothing"
    assert list(lm.prompts) == ["b"]


def test_memory_of_a_held_prompt_is_what_is_told(backbone):
    held = PromptLibrary(backbone, {"a": prompt_of(backbone, 5)})
    config = backbone.model.config
    numbers = 5 * config.hidden_size * 4  # as it was given, fp32
    assert held.infos()[0].num_bytes == numbers
    assert held.ready("a").prefix is not None
    head_size = config.hidden_size // config.num_attention_heads
    prefix_lengths = len(backbone.coder(held["a"].task).prefix_ids)
    states = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size * prefix_lengths * 4
    assert held.infos()[0].num_bytes == numbers + states  # on the CPU in fp32 the embeddings are shared
    own = tiny_backbone()
    own.model.to(torch.bfloat16)
    half = PromptLibrary(own, {"a": prompt_of(own, 5)}, allow_other_base=True)
    assert half.ready("a").prefix is not None
    assert half.infos()[0].num_bytes == numbers + (numbers + states) / 2


def test_prompt_of_another_base_is_refused_when_it_is_used(directory):
    lm = PromptedLM(tiny_backbone(seed=1), directory)
    with pytest.raises(PromptError, match="another base gives it another meaning"):
        lm.classify([{"text": "a"}], "one")
    allowed = PromptedLM(tiny_backbone(seed=1), directory, allow_other_base=True)
    assert len(allowed.classify([{"text": "a"}], "one")) == 1


@pytest.mark.parametrize(("name", "told"), [("notes", "holds no saved prompts"), ("nothing", "does not exist")])
def test_directory_without_prompts_is_told(backbone, directory, name, told):
    with pytest.raises(PromptError, match=told):
        PromptLibrary(backbone, directory / name)


def test_revision_is_that_of_the_first_prompt_of_this_base(backbone, directory):
    prompt_of(backbone, base_name="org/name", revision="v2").save(directory / "hub")
    assert library.base_revision(directory, "org/name") == "v2"
    assert library.base_revision(directory, "org/other") is None


def test_change_of_an_encoders_weights_is_seen(backbone):
    torch.manual_seed(0)
    encoder = Conditioned(torch.randn(4, backbone.width), 8)
    torch.nn.init.normal_(encoder.output[-1].weight, std=0.2)
    task = Task("{prompt:4}review: {text}", verbalizer=LABELS)
    held = SoftPrompt(encoder.prompt_PH, task, backbone.name, backbone.fingerprint, weights=encoder.state_dict())
    lm = PromptedLM(backbone, {"a": held})
    rows = [{"text": "a film", "label": "positive"}]
    before = lm.log_probs(rows)
    lm.prompts["a"].weights["output.2.weight"].mul_(3)
    assert lm.log_probs(rows) != before
    assert lm.log_probs(rows) == PromptedLM(backbone, {"a": lm.prompts["a"]}).log_probs(rows)


def test_training_on_does_not_change_a_prompt_that_was_made(backbone):
    encoder = Conditioned(torch.randn(4, backbone.width), 8)
    held = SoftPrompt(encoder.prompt_PH, weights=encoder.state_dict())
    with torch.no_grad():
        encoder.prompt_PH += 1
    assert not torch.equal(held.embeddings_PH, encoder.prompt_PH)
    assert torch.equal(held.weights["prompt_PH"], held.embeddings_PH)
    with pytest.raises(
        PromptError, match=r"embeddings_PH of shape \[6, 32\] with an encoder's weights of another shape"
    ):
        SoftPrompt(torch.zeros(6, backbone.width), weights=encoder.state_dict())


def test_prompts_may_be_made_and_used_in_inference_mode(backbone):
    with torch.inference_mode():
        lm = PromptedLM(backbone, {"a": prompt_of(backbone)})
        assert len(lm.classify([{"text": "a"}] * 2)) == 2


def test_other_things_in_the_directory_do_not_matter(backbone, directory):
    (directory / "lora").mkdir()
    (directory / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    prompt_of(backbone).save(directory / ".half-written")
    (directory / "torn").mkdir()
    (directory / "torn" / "ptuning.json").write_text("{")
    lm = PromptedLM(backbone, directory)
    assert list(lm.prompts) == ["one", "run", "theirs", "torn"]
    assert str(lm.prompts).splitlines()[-1].startswith("torn: ")
    assert "ptuning.json is truncated or broken" in lm.prompts.infos()[-1].problem
    assert library.base_revision(directory, backbone.name) is None
    assert len(lm.classify([{"text": "a"}], "one")) == 1
    with pytest.raises(PromptError, match=r"torn has no adapter_model.safetensors"):
        lm.classify([{"text": "a"}], "torn")


def test_asking_whether_there_is_a_prompt_reads_none(backbone, directory, monkeypatch):
    held = PromptLibrary(backbone, directory)
    monkeypatch.setattr(SoftPrompt, "load", pytest.fail)
    assert "one" in held
    assert "two" not in held


def test_what_is_no_prompt_is_refused(backbone):
    with pytest.raises(PromptError, match="a prompt 5; expected a SoftPrompt or a saved prompt's directory"):
        PromptLibrary(backbone, {"a": 5})
    other = dataclasses.replace(prompt_of(backbone), results={"mine": {"f1": 0.5}})
    assert "accuracy" not in str(PromptLibrary(backbone, {"a": other}))
