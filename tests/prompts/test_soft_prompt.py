"""A saved prompt is whole, is known by its base, and is the same prompt to PEFT as to us, in both directions."""

import dataclasses
import json
import os
from collections import defaultdict

import peft
import pytest
import torch
from conftest import ASSETS, SIX
from families import tiny_backbone
from safetensors.torch import load_file, save_file
from sealing import change_json, rewrite

from ptuning.data.batches import collate
from ptuning.data.coder import Coder
from ptuning.data.readers import Row, read_rows
from ptuning.data.task import Task
from ptuning.data.template import Template
from ptuning.errors import PromptError
from ptuning.forward.paths import label_logits
from ptuning.prompts import initializers, storage
from ptuning.prompts.soft_prompt import SoftPrompt

TASK = Task("{prompt:4}review: {text}\nsentiment:", verbalizer={"negative": " negative", "positive": " positive"})
RESULTS = {
    "soft prompt": {"num_rows": 1000, "accuracy": 0.875, "interval": [0.853, 0.894], "loss": 0.3125, "num_cut": 2}
}
TEXTS = ("a good film", "the plot was very dull and the film was bad", "")
peft_warns = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def embeddings(num_virtual_tokens=4, width=32, seed=0):
    return torch.randn(num_virtual_tokens, width, generator=torch.Generator().manual_seed(seed)) * 0.5


def whole_prompt(backbone, **changes):
    """A prompt with everything that can be recorded."""
    made = SoftPrompt(
        embeddings(),
        TASK,
        backbone.name,
        backbone.fingerprint,
        encoder={"name": "residual", "hidden_size": None},
        init={"kind": "vocabulary", "text": None, "prompt": None, "token_ids": [5, None, 7, 8]},
        training={"steps": 12, "seconds": 1.5, "data": {"train": "train.csv"}},
        results=RESULTS,
    )
    return dataclasses.replace(made, **changes)


def files(directory):
    """Every file's bytes, by its name."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def ours(backbone, soft_prompt, texts):
    """The label logits of each text, unpadded, by our own forward."""
    coder = Coder(soft_prompt.task, backbone.tokenizer, backbone.max_positions)
    examples = coder.encode([Row({"text": text, "label": "positive"}, "row") for text in texts])
    with torch.no_grad():
        batches = [collate([example], backbone.pad_id) for example in examples]
        return torch.cat([label_logits(backbone, soft_prompt.embeddings_PH, batch) for batch in batches])


def pefts(model, tokenizer, texts):
    """The last position's logits of each text with PEFT, one row at a time, tokenized as any user would."""
    logits = []
    for text in texts:
        encoded = tokenizer(f"review: {text}\nsentiment:", return_tensors="pt")
        with torch.no_grad():
            logits.append(model(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask).logits[:, -1])
    return torch.cat(logits)


def test_saved_prompt_loads_with_the_same_bits_and_metadata(backbone, tmp_path):
    saved = whole_prompt(backbone)
    loaded = SoftPrompt.load(saved.save(tmp_path / "prompt"))
    assert torch.equal(loaded.embeddings_PH, saved.embeddings_PH)
    assert loaded.embeddings_PH.dtype == torch.float32
    for field in dataclasses.fields(SoftPrompt)[1:]:
        assert getattr(loaded, field.name) == getattr(saved, field.name), field.name


def test_saving_a_trained_tensor_keeps_nothing_but_its_values(backbone, tmp_path):
    trained = torch.nn.Parameter(embeddings(8)[::2])
    loaded = SoftPrompt.load(whole_prompt(backbone, embeddings_PH=trained).save(tmp_path / "prompt"))
    assert torch.equal(loaded.embeddings_PH, trained)
    assert not loaded.embeddings_PH.requires_grad


def test_directory_holds_weights_two_configs_and_a_card(backbone, tmp_path):
    directory = whole_prompt(backbone).save(tmp_path / "runs" / "prompt")
    assert sorted(files(directory)) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "ptuning.json"]
    tensors = load_file(directory / "adapter_model.safetensors")
    assert list(tensors) == ["prompt_embeddings"]
    adapter = json.loads((directory / "adapter_config.json").read_text())
    expected = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": 4,
        "token_dim": 32,
        "num_transformer_submodules": 1,
        "num_attention_heads": 4,
        "num_layers": 2,
        "inference_mode": True,
        "base_model_name_or_path": "tiny-llama",
    }
    assert adapter.items() >= expected.items()


@pytest.mark.parametrize(
    "template", ["review: {prompt:4}{text}", "{prompt:3}{text}{prompt:1} is", "{text}{prompt:4}", "{text}{prompt:4}:"]
)
def test_prompt_whose_slots_do_not_lead_is_no_peft_adapter(backbone, tmp_path, template):
    elsewhere = whole_prompt(backbone, task=dataclasses.replace(TASK, template=template))
    directory = elsewhere.save(tmp_path / "prompt")
    assert sorted(files(directory)) == ["README.md", "adapter_model.safetensors", "ptuning.json"]
    assert "this is not a PEFT adapter: load it with ptuning" in (directory / "README.md").read_text()
    assert SoftPrompt.load(directory).task == elsewhere.task


def test_model_card_tells_what_was_measured_and_how_to_use_it(backbone, tmp_path):
    card = (whole_prompt(backbone).save(tmp_path / "prompt") / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ptuning\nbase_model: tiny-llama\n")
    assert "4 virtual tokens of width 32" in card
    assert "also a PEFT prompt-tuning adapter" in card
    assert "\n| soft prompt | 1,000 | 0.875    | 0.853 to 0.894 | 0.312        |\n" in card
    assert "- steps: 12\n" in card
    assert 'lm.classify([{"text": "..."}], prompt="task")' in card


def test_card_of_a_generating_prompt_without_results_has_no_empty_table(backbone, tmp_path):
    generating = whole_prompt(backbone, task=Task("{prompt:4}{question}", "{answer}"), results={})
    card = (generating.save(tmp_path / "prompt") / "README.md").read_text()
    assert "## Results" not in card
    assert "labels: free text" in card
    assert 'lm.generate([{"question": "..."}], prompt="task")' in card


def test_overwriting_leaves_nothing_of_the_older_prompt(backbone, tmp_path):
    whole_prompt(backbone).save(tmp_path / "prompt")
    newer = whole_prompt(
        backbone, embeddings_PH=embeddings(seed=1), task=Task("{text}{prompt:4}", verbalizer=TASK.verbalizer)
    )
    newer.save(tmp_path / "prompt")
    assert torch.equal(SoftPrompt.load(tmp_path / "prompt").embeddings_PH, newer.embeddings_PH)
    assert sorted(files(tmp_path / "prompt")) == ["README.md", "adapter_model.safetensors", "ptuning.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["prompt"]


@pytest.mark.parametrize("held", ["directory", "file"])
def test_nothing_but_a_saved_prompt_is_overwritten(backbone, tmp_path, held):
    target = tmp_path / "thesis"
    if held == "directory":
        whole_prompt(backbone).save(target)
        (target / "chapter1.tex").write_text("years of work")
    else:
        target.write_text("years of work")
    before = files(target) if held == "directory" else target.read_text()
    with pytest.raises(PromptError, match=r"thesis holds (chapter1\.tex|thesis), which is not part of a saved prompt"):
        whole_prompt(backbone).save(target)
    assert (files(target) if held == "directory" else target.read_text()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


@pytest.mark.parametrize("failing_call", [1, 2])
def test_overwriting_that_fails_at_a_rename_keeps_the_older_prompt(backbone, tmp_path, monkeypatch, failing_call):
    directory = whole_prompt(backbone).save(tmp_path / "prompt")
    before, calls, replace = files(directory), iter(range(1, 9)), os.replace

    def failing(*paths):
        if next(calls) == failing_call:
            raise OSError("the network drive is gone")
        replace(*paths)

    monkeypatch.setattr("ptuning.files._exchanged", lambda one, other: False)
    monkeypatch.setattr("ptuning.files.os.replace", failing)
    with pytest.raises(OSError, match="the network drive is gone"):
        whole_prompt(backbone, embeddings_PH=embeddings(seed=1)).save(directory)
    assert files(directory) == before
    assert [path.name for path in tmp_path.iterdir()] == ["prompt"]


def test_revision_of_a_hub_model_is_kept_and_told_to_peft(backbone, tmp_path):
    directory = whole_prompt(backbone, revision="v2").save(tmp_path / "prompt")
    assert SoftPrompt.load(directory).revision == "v2"
    assert json.loads((directory / "adapter_config.json").read_text())["revision"] == "v2"


def test_failed_overwriting_keeps_the_older_prompt_whole(backbone, tmp_path, monkeypatch):
    directory = whole_prompt(backbone).save(tmp_path / "prompt")
    before = files(directory)

    def fail(*_):
        raise KeyboardInterrupt("in the middle of saving")

    monkeypatch.setattr(storage, "model_card", fail)
    with pytest.raises(KeyboardInterrupt, match="in the middle of saving"):
        whole_prompt(backbone, embeddings_PH=embeddings(seed=1)).save(directory)
    assert files(directory) == before
    assert [path.name for path in tmp_path.iterdir()] == ["prompt"]


@peft_warns
@pytest.mark.parametrize("family", SIX)
def test_peft_reads_our_prompt_and_gives_our_logits(family, tmp_path):
    backbone = tiny_backbone(family)
    soft_prompt = whole_prompt(backbone)
    expected_NV = ours(backbone, soft_prompt, TEXTS)
    directory = soft_prompt.save(tmp_path / "prompt")
    model = peft.PeftModel.from_pretrained(tiny_backbone(family).model, directory)
    theirs_NV = pefts(model, backbone.tokenizer, TEXTS)
    assert (theirs_NV - expected_NV).abs().max() < 1e-4
    assert (
        ours(backbone, dataclasses.replace(soft_prompt, embeddings_PH=embeddings(seed=1)), TEXTS) - expected_NV
    ).abs().max() > 1e-2


PEFT_CONFIGS = {
    "prompt_tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "mlp": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
    "lstm": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=4,
        encoder_hidden_size=16,
        encoder_reparameterization_type="LSTM",
        encoder_dropout=0.0,
    ),
}


@peft_warns
@pytest.mark.parametrize("kind", PEFT_CONFIGS)
@pytest.mark.parametrize("family", SIX)
def test_prompt_that_peft_saved_gives_its_logits_here(family, kind, tmp_path):
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_backbone(family).model, PEFT_CONFIGS[kind]()).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = SoftPrompt.load(tmp_path / "adapter")
    assert (loaded.task, loaded.fingerprint, loaded.embeddings_PH.shape) == (None, None, (4, 32))
    backbone = tiny_backbone(family)
    here_NV = ours(backbone, dataclasses.replace(loaded, task=TASK), TEXTS)
    assert (here_NV - pefts(model, backbone.tokenizer, TEXTS)).abs().max() < 1e-4


@peft_warns
def test_prompt_that_peft_saved_records_its_base(model_directory, tmp_path):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_directory)
    peft.get_peft_model(base, PEFT_CONFIGS["prompt_tuning"]()).save_pretrained(tmp_path / "adapter")
    assert SoftPrompt.load(tmp_path / "adapter").base_name == str(model_directory)


@peft_warns
@pytest.mark.parametrize(
    ("config", "told"),
    [
        (lambda: peft.LoraConfig(task_type="CAUSAL_LM"), "lora_A.* expected one tensor prompt_embeddings"),
        (
            lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
            "a PEFT adapter of type PREFIX_TUNING for CAUSAL_LM; expected PROMPT_TUNING or P_TUNING",
        ),
    ],
)
def test_other_kinds_of_peft_adapters_are_refused(config, told, tmp_path):
    peft.get_peft_model(tiny_backbone().model, config()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(PromptError, match=told):
        SoftPrompt.load(tmp_path / "adapter")


@peft_warns
def test_peft_prompt_for_an_encoder_and_a_decoder_is_refused(tmp_path):
    model = peft.get_peft_model(tiny_backbone().model, PEFT_CONFIGS["prompt_tuning"]())
    model.save_pretrained(tmp_path / "adapter")
    change_json(tmp_path / "adapter" / "adapter_config.json", num_transformer_submodules=2, task_type="SEQ_2_SEQ_LM")
    with pytest.raises(PromptError, match=r"for the decoder too .*; expected virtual tokens for the encoder alone"):
        SoftPrompt.load(tmp_path / "adapter")


def test_another_base_is_refused_unless_allowed(backbone):
    other = tiny_backbone(seed=1)
    soft_prompt = whole_prompt(backbone)
    soft_prompt.require_base(backbone.name, backbone.width, tiny_backbone().fingerprint)
    with pytest.raises(
        PromptError, match=r"tuned on tiny-llama .* another base gives it another meaning.*allow_other_base=True"
    ):
        soft_prompt.require_base(other.name, other.width, other.fingerprint)
    soft_prompt.require_base(other.name, other.width, other.fingerprint, allow_other_base=True)


def test_another_width_is_refused_even_where_another_base_is_allowed(backbone):
    wide = tiny_backbone(hidden_size=64)
    with pytest.raises(PromptError, match="a prompt of width 32 for tiny-llama of width 64"):
        whole_prompt(backbone).require_base(wide.name, wide.width, wide.fingerprint, allow_other_base=True)


def test_prompt_without_a_fingerprint_is_held_to_its_width_only(backbone):
    unknown = whole_prompt(backbone, fingerprint=None)
    unknown.require_base(backbone.name, backbone.width, backbone.fingerprint)
    with pytest.raises(PromptError, match="of width 64"):
        unknown.require_base(backbone.name, 64, backbone.fingerprint)


def test_template_with_other_slots_than_the_tensor_is_refused(backbone):
    with pytest.raises(PromptError, match="4 virtual tokens for a template with 5"):
        whole_prompt(backbone, task=Task("{prompt:5}{text}"))


BREAKAGES = {
    "does not exist": lambda directory: directory.rename(directory.with_name("elsewhere")),
    "has no adapter_model.safetensors": lambda directory: (directory / "adapter_model.safetensors").unlink(),
    "adapter_model.safetensors is truncated or broken": lambda directory: (
        directory / "adapter_model.safetensors"
    ).write_bytes((directory / "adapter_model.safetensors").read_bytes()[:-9]),
    "its tensor is not the one ptuning.json describes": lambda directory: save_file(
        {"prompt_embeddings": embeddings(seed=1)}, directory / "adapter_model.safetensors"
    ),
    r"holds .*'prompt_embeddings': \[32\]": lambda directory: save_file(
        {"prompt_embeddings": torch.zeros(32)}, directory / "adapter_model.safetensors"
    ),
    "ptuning.json is truncated or broken": lambda directory: (directory / "ptuning.json").write_text(
        '{"format_version": 1'
    ),
    "it: .*, input should be an object": lambda directory: (directory / "ptuning.json").write_text("[]"),
    "base: .*field required": lambda directory: rewrite(
        directory / "ptuning.json",
        json.dumps({k: v for k, v in json.loads((directory / "ptuning.json").read_text()).items() if k != "base"}),
    ),
    "unexpected keyword argument 'colour'": lambda directory: change_json(
        directory / "ptuning.json", task={"template": "{prompt:4}", "colour": "red"}
    ),
    "has format version 3; expected 1 or 2. Upgrade ptuning": lambda directory: change_json(
        directory / "ptuning.json", format_version=3
    ),
    "it has no digest": lambda directory: rewrite(
        directory / "ptuning.json",
        json.dumps({k: v for k, v in json.loads((directory / "ptuning.json").read_text()).items() if k != "seal"}),
    ),
}


@pytest.mark.parametrize("told", BREAKAGES)
def test_broken_prompt_directory_is_told_in_one_line(backbone, tmp_path, told):
    directory = whole_prompt(backbone).save(tmp_path / "prompt")
    BREAKAGES[told](directory)
    with pytest.raises(PromptError, match=told) as raised:
        SoftPrompt.load(directory)
    assert "\n" not in str(raised.value)


@peft_warns
@pytest.mark.real_model
def test_peft_and_we_agree_on_100_real_reviews_in_both_directions(real_backbone, tmp_path):
    task = dataclasses.replace(TASK, template="{prompt:5}Review: {text}\nSentiment:")
    noise_PH = embeddings(5, real_backbone.width) * 0.2
    start_PH = initializers.from_vocabulary(real_backbone.vocabulary_VH, 5) + noise_PH
    first = SoftPrompt(start_PH, task, real_backbone.name, real_backbone.fingerprint)
    model = peft.PeftModel.from_pretrained(real_backbone.model, first.save(tmp_path / "ours"))
    model.save_pretrained(tmp_path / "theirs")
    returned = dataclasses.replace(SoftPrompt.load(tmp_path / "theirs"), task=task)
    assert torch.equal(returned.embeddings_PH, start_PH)

    rows = read_rows(str(ASSETS / "movie_reviews" / "test.csv"), "test", task.columns)
    tokenized = real_backbone.tokenizer(
        [Template.parse(task.without_prompt().template).fill(row.values)[0] for row in rows]
    )
    by_length = defaultdict(list)
    for row, example, ids in zip(
        rows, Coder(task, real_backbone.tokenizer).encode(rows), tokenized.input_ids, strict=True
    ):
        assert example.ids == [-1, -2, -3, -4, -5, *ids], row
        by_length[len(ids)].append((example, ids))
    groups = [by_length[length][:10] for length in sorted(by_length) if len(by_length[length]) >= 10][:10]
    assert sum(map(len, groups)) == 100
    labels_C = torch.tensor([ids[0] for ids in Coder(task, real_backbone.tokenizer).label_ids])
    for group in groups:
        ids_BT = torch.tensor([ids for _, ids in group])
        batch = collate([example for example, _ in group], real_backbone.pad_id)
        assert batch.mask_BT.all()
        with torch.no_grad():
            ours_BV = label_logits(real_backbone, returned.embeddings_PH, batch)
            theirs_BV = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), logits_to_keep=1).logits[:, 0]
        assert (ours_BV - theirs_BV)[:, labels_C].abs().max() < 1e-4
        assert (ours_BV - theirs_BV).abs().max() < 1e-5 * theirs_BV.abs().max()
