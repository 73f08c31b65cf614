"""The base model stays frozen, is recognised in any precision, and tells clearly why it cannot be used."""

import copy
import functools
import json
import shutil
import sys
import threading
import time

import pytest
import torch
from conftest import ASSETS, SIX
from families import FAMILIES, tiny_backbone, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, LlamaForCausalLM

from ptuning.data.batches import collate
from ptuning.data.examples import Example
from ptuning.data.readers import read_rows
from ptuning.data.task import Task
from ptuning.errors import ModelError
from ptuning.forward import objective
from ptuning.forward.paths import label_logits
from ptuning.forward.splice import splice
from ptuning.model import Backbone, capabilities, hub, loading, quantization
from ptuning.model.checkpointing import is_checkpointed
from ptuning.model.fingerprint import Fingerprint
from ptuning.prompts.encoders import Residual
from ptuning.prompts.initializers import from_vocabulary


def train_one_step(backbone):
    """An optimizer step of a prompt on two rows."""
    encoder = Residual(from_vocabulary(backbone.vocabulary_VH, 3))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1)
    batch = collate([Example([-1, -2, -3, 5, 6], [9]), Example([-1, -2, -3, 7], [8, 9])], backbone.pad_id)
    objective.loss(backbone, encoder(), batch).backward()
    optimizer.step()


@pytest.fixture
def saved(model_directory, tmp_path):
    """A model directory of one's own, to be broken."""
    return shutil.copytree(model_directory, tmp_path / "model")


def test_model_is_frozen_and_in_eval_mode():
    model = tiny_backbone("gpt2").model.train().requires_grad_(True)
    frozen = Backbone.of(model, None)
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())
    assert not any(module.training for module in frozen.model.modules())


@pytest.mark.parametrize("family", SIX)
def test_training_a_prompt_leaves_every_weight_as_it_was(family):
    backbone = tiny_backbone(family)
    before = backbone.weights_sha256()
    train_one_step(backbone)
    assert backbone.weights_sha256() == before
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_sha256_changes_with_any_single_bit(dtype):
    backbone = tiny_backbone()
    backbone.model.to(dtype)
    before = backbone.weights_sha256()
    for weight in (backbone.model.lm_head.weight, backbone.model.model.norm.weight):
        bits = weight.data.view(torch.uint8).flatten()
        bits[-1] ^= 1
        assert backbone.weights_sha256() != before
        bits[-1] ^= 1
        assert backbone.weights_sha256() == before


def test_weights_sha256_tells_weights_apart_that_swap_their_names():
    one, other = tiny_backbone(), tiny_backbone()
    layers = other.model.model.layers
    layers[0], layers[1] = layers[1], layers[0]
    assert one.weights_sha256() != other.weights_sha256()


def test_embeddings_are_those_the_model_makes_itself(any_backbone):
    ids_BT = torch.tensor([[5, 6, 7], [330, 1, 0]])
    model = any_backbone.model
    with torch.no_grad():
        embedded_BTH = any_backbone.embed(ids_BT)
        by_ids, by_embeddings = model(input_ids=ids_BT).logits, model(inputs_embeds=embedded_BTH).logits
    assert embedded_BTH.shape == (2, 3, any_backbone.width)
    assert torch.equal(by_ids, by_embeddings)
    assert torch.equal(any_backbone.vocabulary_VH[ids_BT], embedded_BTH)


def test_vocabulary_is_scaled_as_gemma_scales_it():
    gemma = tiny_backbone("gemma3_text")
    weight_VH = gemma.model.get_input_embeddings().weight
    assert (gemma.vocabulary_VH - weight_VH * 32**0.5).abs().max() < 1e-5


def test_vocabulary_is_whole_whatever_it_is_embedded_in(monkeypatch):
    backbone = tiny_backbone()
    monkeypatch.setattr("ptuning.model.backbone._EMBED_CHUNK", 100)
    assert torch.equal(backbone.vocabulary_VH, backbone.model.get_input_embeddings().weight)
    assert not backbone.vocabulary_VH.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_fingerprint_is_the_same_in_any_precision(any_backbone, dtype):
    rounded = Fingerprint.of(copy.deepcopy(any_backbone.model).to(dtype))
    assert any_backbone.fingerprint.matches(rounded)
    assert rounded.matches(any_backbone.fingerprint)
    assert len(rounded.weights) == 256


def test_fingerprint_tells_another_seed_apart(any_backbone):
    other = tiny_backbone(any_backbone.name.removeprefix("tiny-"), seed=1)
    assert dict(other.fingerprint.architecture) == dict(any_backbone.fingerprint.architecture)
    assert not any_backbone.fingerprint.matches(other.fingerprint)
    assert not other.fingerprint.matches(any_backbone.fingerprint)


def test_fingerprint_tells_a_slightly_tuned_copy_apart(any_backbone):
    tuned = copy.deepcopy(any_backbone.model).requires_grad_(True)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-6, weight_decay=0.0)
    ids_BT = torch.tensor([[5, 6, 7, 8, 9, 10]])
    tuned(input_ids=ids_BT, labels=ids_BT).loss.backward()
    optimizer.step()
    assert not any_backbone.fingerprint.matches(Fingerprint.of(tuned))


def test_fingerprint_tells_a_tuned_copy_apart_in_another_precision(any_backbone):
    tuned = copy.deepcopy(any_backbone.model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1 + 0.005 * torch.randn_like(parameter).clamp(-1.5, 1.5))
    assert not any_backbone.fingerprint.matches(Fingerprint.of(tuned.bfloat16()))


def test_fingerprint_tells_another_architecture_apart(backbone):
    same = backbone.fingerprint
    other = Fingerprint({**same.architecture, "num_attention_heads": 8}, same.weights, same.dtype)
    assert not same.matches(other)
    assert str(same).startswith("llama 2x32 ")
    assert str(same) != str(tiny_backbone(seed=1).fingerprint)


def test_saved_model_loads_as_it_was(model_directory, backbone):
    loaded = Backbone.from_pretrained(model_directory, dtype="float32", device="cpu")
    assert loaded.weights_sha256() == backbone.weights_sha256()
    assert loaded.name == str(model_directory)
    assert loaded.fingerprint.matches(backbone.fingerprint)
    assert (loaded.width, loaded.device.type, loaded.dtype) == (32, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
    ],
)
def test_precision_is_bfloat16_where_the_processor_computes_in_it(model_directory, monkeypatch, features, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    loaded = Backbone.from_pretrained(model_directory, device="cpu")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
    assert loaded.vocabulary_VH.dtype == loaded.dtype == dtype


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_precision_of_a_gpu_is_bfloat16_only_where_it_is_not_emulated(monkeypatch, supported, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    assert loading._dtype("auto", torch.device("cuda")) == dtype


def test_precision_that_is_named_is_taken(model_directory):
    assert Backbone.from_pretrained(model_directory, dtype="float16", device="cpu").dtype == torch.float16


def test_end_ids_are_the_tokenizers_and_the_models_own():
    backbone = tiny_backbone()
    assert backbone.end_ids == [1]
    backbone.model.generation_config.eos_token_id = [7, 1, 5]
    assert backbone.end_ids == [1, 5, 7]
    backbone.model.generation_config.eos_token_id = 9
    assert backbone.end_ids == [1, 9]
    backbone.model.generation_config.eos_token_id = None
    backbone.tokenizer.eos_token = None
    assert backbone.end_ids == []


def test_rows_are_filled_with_whatever_the_tokenizer_has():
    backbone = tiny_backbone()
    assert backbone.pad_id == 2
    backbone.tokenizer.pad_token = None
    assert backbone.pad_id == 1
    backbone.tokenizer.eos_token = None
    assert backbone.pad_id == 0


def test_model_without_a_position_table_has_no_limit(monkeypatch):
    assert tiny_backbone("gpt2").max_positions == 96
    assert tiny_backbone("bloom").max_positions is None


def test_model_that_takes_no_positions_is_run_without_them(monkeypatch):
    bloom = tiny_backbone("bloom")
    prompt_PH = from_vocabulary(bloom.vocabulary_VH, 2)
    examples = [Example([-1, -2, 5, 6, 7, 8], [9]), Example([-1, -2, 7], [8, 9])]
    with torch.no_grad():
        alone_NV = torch.cat([splice(bloom, prompt_PH, collate([each], 2)) for each in examples])
        for side in ("left", "right"):
            for path in (splice, label_logits):
                assert (path(bloom, prompt_PH, collate(examples, 2, side)) - alone_NV).abs().max() < 1e-4


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_unknown_device_is_told(model_directory, device):
    with pytest.raises(ModelError, match=f"device {device} .*; expected a device of this machine. Use auto or cpu"):
        Backbone.from_pretrained(model_directory, device=device)


def drop_a_weight(directory):
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def truncate_weights(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def change_config(directory, **changes):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


BREAKAGES = {
    r"it lacks weights such as model\.layers\.1\.mlp\.up_proj\.weight": drop_a_weight,
    r"model directory .* cannot be loaded \(.*(safetensors|header)": truncate_weights,
    r"model directory .* cannot be loaded \(.*(size mismatch|mismatched|shape)": lambda directory: change_config(
        directory, hidden_size=64, head_dim=8
    ),
    r"model directory .* cannot be loaded \(.*no-such-model": lambda directory: change_config(
        directory, model_type="no-such-model"
    ),
    r"model directory .* cannot be loaded \(.*config\.json": lambda directory: (directory / "config.json").write_text(
        "{"
    ),
    r"model .* cannot be loaded \(": shutil.rmtree,
}


@pytest.mark.parametrize("told", BREAKAGES)
def test_model_that_cannot_be_loaded_is_told_in_one_line(saved, told):
    BREAKAGES[told](saved)
    with pytest.raises(ModelError, match=told) as raised:
        Backbone.from_pretrained(saved, device="cpu")
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("Check the name and the files in it.")


@pytest.mark.parametrize("special", [False, True])
def test_tokenizer_that_can_write_more_ids_than_the_model_has_is_refused(saved, special):
    tokenizer = tiny_tokenizer()
    num_embeddings = len(tokenizer)
    tokenizer.add_tokens(["<new>"], special_tokens=special)
    tokenizer.save_pretrained(saved)
    if special:  # as Gemma 3's image token, which no text can be
        assert len(Backbone.from_pretrained(saved, device="cpu").tokenizer) == num_embeddings + 1
        return
    match = f"its tokenizer has the id {num_embeddings} and the model {num_embeddings} embeddings"
    with pytest.raises(ModelError, match=match):
        Backbone.from_pretrained(saved, device="cpu")


def test_model_whose_tokens_see_the_answer_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    BertLMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="its tokens see those that come after them"):
        Backbone.from_pretrained(tmp_path, device="cpu")


_PER_LAYER = {
    **{"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    **{"intermediate_size": 48, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "sliding_window": 64},
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
THAT_READ_IDS = {
    "gemma3n_text": {"laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4},
    "gemma4_text": {"global_head_dim": 8},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", THAT_READ_IDS)
def test_model_whose_layers_read_ids_is_refused(tmp_path, monkeypatch, family):
    size = {"vocab_size_per_layer_input": len(tiny_tokenizer())}
    monkeypatch.setitem(FAMILIES, family, {**_PER_LAYER, **size, **THAT_READ_IDS[family]})
    for each in tiny_model(family):
        each.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be loaded \(its layers also read the tokens' ids"):
        Backbone.from_pretrained(tmp_path, device="cpu")


class _Overwriting(torch.nn.Module):
    """A layer that overwrites what its backward pass needs."""

    def forward(self, x):
        hidden = x.sigmoid()
        found = hidden * x
        hidden.zero_()
        return found


class _Detached(torch.nn.Module):
    """A layer whose gradient is not what it does."""

    def forward(self, x):
        return x + 3 * x.detach()


@pytest.mark.parametrize("layer", [_Overwriting, _Detached])
def test_model_whose_gradients_are_wrong_does_not_train(backbone, layer):
    wrong = copy.deepcopy(backbone.model)
    wrong.model.layers[0].mlp.act_fn = layer()
    steps = (wrong, backbone.tokenizer, "wrong")
    with pytest.raises(ModelError, match="model wrong, whose backward pass does not agree with its forward pass"):
        Backbone.of(*steps).require_trainable()
    backbone.require_trainable()


def test_every_family_is_causal(any_backbone):
    assert any_backbone.is_causal


def test_code_that_comes_with_a_model_does_not_run_unless_it_is_allowed(saved):
    ran = saved / "ran"
    (saved / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change_config(saved, model_type="own", auto_map=auto_map)
    with pytest.raises(ModelError, match="trust_remote_code"):
        Backbone.from_pretrained(saved, device="cpu")
    assert not ran.exists()


def test_an_index_names_files_of_its_own_directory(saved):
    (saved.parent / "elsewhere.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    (saved / "model.safetensors").unlink()
    names = load_file(saved.parent / "elsewhere.safetensors")
    for file in ("../elsewhere.safetensors", str(saved.parent / "elsewhere.safetensors")):
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, file)}
        (saved / "model.safetensors.index.json").write_text(json.dumps(index))
        for load in (Backbone.from_pretrained, Backbone.embeddings_of):
            with pytest.raises(ModelError, match=r"names the file .*elsewhere\.safetensors, which is outside"):
                load(saved)


def test_without_a_network_a_name_is_not_looked_up(monkeypatch):
    def unreachable(*_):
        raise OSError("no network")

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(hub.socket, "create_connection", unreachable)
    assert loading._of_hub("no/such-model") == {"local_files_only": True}
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"model no/such-model, no directory here, cannot be loaded"):
        Backbone.from_pretrained("no/such-model")
    assert time.monotonic() - started < 5
    with pytest.raises(ModelError, match=r"model no/such-model, no directory here, cannot be loaded"):
        Backbone.embeddings_of("no/such-model")
    assert time.monotonic() - started < 10
    asked = []
    monkeypatch.setattr(hub.socket, "create_connection", lambda place, _: asked.append(place) or unreachable())
    for endpoint in ("https://hub.test", "http://hub.test", "http://hub.test:8080"):
        monkeypatch.setattr(hub.constants, "ENDPOINT", endpoint)
        loading._of_hub("no/such-model")
    assert asked == [("hub.test", 443), ("hub.test", 80), ("hub.test", 8080)]
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "proxy"})
    assert loading._of_hub("no/such-model") == {}


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "experts_implementation"])
def test_code_that_a_config_names_is_not_fetched(saved, key):
    change_config(saved, **{key: "someone/kernel"})
    for load in (Backbone.from_pretrained, Backbone.embeddings_of):
        with pytest.raises(ModelError, match=r"asks for _\w+_implementation 'someone/kernel', which may be code from"):
            load(saved)
    change_config(saved, **{key: "eager"})
    Backbone.from_pretrained(saved)


@pytest.mark.real_model
def test_real_model_is_recognised_in_bfloat16(real_backbone):
    half = Backbone.from_pretrained(ASSETS / "smollm2-135m-instruct", dtype="bfloat16", device="cpu")
    assert half.fingerprint.matches(real_backbone.fingerprint)
    assert half.weights_sha256() != real_backbone.weights_sha256()


@pytest.mark.parametrize(("kind", "name"), [("int8", "Int8Weight"), ("int4", "Int4Weight")])
def test_quantized_weights_are_those_of_linear_layers_but_not_the_heads(model_directory, kind, name):
    whole = Backbone.from_pretrained(model_directory, dtype="float32", device="cpu")
    small = Backbone.from_pretrained(model_directory, dtype="float32", device="cpu", quantization=kind)
    kinds = {name: type(each).__name__ for name, each in small.model.named_parameters()}
    assert kinds["model.layers.0.mlp.up_proj.weight"] == name
    assert kinds["lm_head.weight"] == kinds["model.embed_tokens.weight"] == "Parameter"
    assert small.fingerprint.matches(whole.fingerprint)
    assert small.weights_sha256() != whole.weights_sha256()
    assert small.weights_sha256() == small.weights_sha256()
    assert not any(each.requires_grad for each in small.model.parameters())


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantization_without_torchao_is_told(model_directory, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ModelError, match=rf"{kind} without torchao; .* pip install torchao"):
        Backbone.from_pretrained(model_directory, quantization=kind)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantization_of_a_model_without_linear_layers_is_refused(kind):
    model, _ = tiny_model("gpt2")
    with pytest.raises(ModelError, match=rf"{kind} with a gpt2 model, whose weights are not in linear layers"):
        quantization.quantize(model, kind)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized_weights_go_to_the_device_one_by_one(monkeypatch, kind):
    """The device never holds more than one whole weight."""
    model, _ = tiny_model("llama")
    moved, to = [], torch.nn.Linear.to
    monkeypatch.setattr(torch.nn.Linear, "to", lambda self, device: moved.append(device) or to(self, device))
    monkeypatch.setattr(quantization, "_require_running", lambda *_: None)  # a meta tensor has no values
    quantization.quantize(model, kind, torch.device("meta"))
    assert len(moved) == sum(type(each) is torch.nn.Linear for each in model.modules()) - 1  # all but the head
    assert {each.device.type for each in model.parameters()} == {"meta"}


def test_model_too_large_for_the_device_is_told(model_directory, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(LlamaForCausalLM, "to", fail)
    for kind in ("none", "int8", "int4"):
        with pytest.raises(ModelError, match=r"too large for the memory of cpu; .*\. Set model.quantization to int8"):
            Backbone.from_pretrained(model_directory, device="cpu", quantization=kind)


@pytest.mark.real_model
def test_quantized_base_gives_a_gradient_that_points_the_same_way(real_backbone):
    """Not as near as a tiny model's (0.999, tests/conformance): bfloat16 is off this far too."""
    task = Task("{prompt:20}Review: {text}\nSentiment:", verbalizer={"negative": " negative", "positive": " positive"})
    rows = read_rows(str(ASSETS / "movie_reviews" / "validation.csv"), "validation", task.columns)[:8]
    batch = real_backbone.collate(real_backbone.coder(task).encode(rows))
    gradients = []
    for kind in ("none", "int8", "int4"):
        backbone = Backbone.from_pretrained(real_backbone.name, dtype="float32", device="cpu", quantization=kind)
        prompt_PH = from_vocabulary(real_backbone.vocabulary_VH, 20).requires_grad_()
        objective.loss(backbone, prompt_PH, batch).backward()
        gradients.append(prompt_PH.grad.flatten())
    for gradient in gradients[1:]:
        assert torch.nn.functional.cosine_similarity(gradients[0], gradient, dim=0) > 0.98


def test_checkpointing_leaves_the_model_as_it_is_and_shares_its_weights(backbone):
    layer = backbone.model.model.layers[0]
    layer.forward = own = functools.partial(layer.forward)  # as accelerate's hooks do
    try:
        twin = backbone.with_checkpointing()
        assert is_checkpointed(twin.model)
        assert not is_checkpointed(backbone.model)
        assert vars(layer)["forward"] is own
        assert "forward" not in vars(backbone.model.model.layers[1])
        assert twin.model.model.layers[0].forward.args[0].args == ()
        assert twin.model.model.layers[0].forward.args[0].func.__self__ is twin.model.model.layers[0]
        ours, theirs = ([*each.model.parameters(), *each.model.buffers()] for each in (backbone, twin))
        assert all(one is other for one, other in zip(ours, theirs, strict=True))
        assert twin.fingerprint == backbone.fingerprint
    finally:
        del layer.forward


def test_no_second_matrix_of_embeddings_is_kept(backbone, monkeypatch):
    weight_VH = backbone.model.get_input_embeddings().weight
    assert backbone.vocabulary_VH.data_ptr() == weight_VH.data_ptr()
    gemma = tiny_backbone("gemma3_text")
    assert gemma.vocabulary_VH.data_ptr() != gemma.vocabulary_VH.data_ptr()
    assert not [each for each in vars(gemma).values() if isinstance(each, torch.Tensor)]


def test_threads_take_turns_where_a_model_changes_when_it_is_run():
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    for parameters, waits in ((scaled, True), ({"rope_type": "default", "rope_theta": 10000.0}, False)):
        backbone, began = tiny_backbone(rope_parameters=parameters), threading.Event()
        ids_1T = torch.tensor([[1, 2]])

        def run(backbone=backbone, began=began, ids_1T=ids_1T):
            backbone.run(inputs_embeds=backbone.embed(ids_1T), use_cache=False)
            began.set()

        with backbone.in_turn():
            thread = threading.Thread(target=run)
            thread.start()
            assert began.wait(0.5 if waits else 30) is not waits
        thread.join()
        assert began.is_set()


def test_quantized_model_of_ones_own_has_a_fingerprint(model_directory):
    small = Backbone.from_pretrained(model_directory, dtype="float32", device="cpu", quantization="int8")
    own = Backbone.of(small.model, small.tokenizer, "mine")
    assert own.fingerprint.matches(own.fingerprint)


def test_encoder_decoder_that_does_not_say_how_it_begins_is_refused(monkeypatch):
    model, tokenizer = tiny_model("t5")
    monkeypatch.delattr(type(model), "prepare_decoder_input_ids_from_labels")
    with pytest.raises(ModelError, match="does not say how its decoder begins"):
        Backbone.of(model, tokenizer)


def test_a_model_that_takes_one_mask_a_row_only_does_not_lay_rows_end_to_end():
    backbone = tiny_backbone("falcon", alibi=True)
    assert backbone.supports_prefix_cache
    assert not backbone.supports_packing


def test_a_model_whose_attention_is_its_own_runs_a_prefix_apart():
    assert tiny_backbone().supports_joint_prefix
    for backbone in (tiny_backbone("gpt_oss"), tiny_backbone()):
        backbone.model.set_attn_implementation("eager")
        assert backbone.supports_packing
        assert not backbone.supports_joint_prefix


def test_a_prefix_that_does_not_reach_every_line_is_found_out(monkeypatch):
    def of_each_line(prefix, *states):
        return [torch.cat([each[:, :, : prefix.num_tokens], each], dim=2) for each in states]

    monkeypatch.setattr("ptuning.model.kernels.JointPrefix.before", of_each_line)
    assert not capabilities.supports_joint_prefix(tiny_backbone())
    half = tiny_backbone()
    half.model.to(torch.bfloat16)
    assert not capabilities.supports_joint_prefix(half)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_alone_are_those_of_the_whole_model(family, tmp_path):
    tiny = tiny_backbone(family)
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    for dtype in ("float32", "bfloat16"):
        whole, part = (make(tmp_path, dtype, "cpu") for make in (Backbone.from_pretrained, Backbone.embeddings_of))
        assert torch.equal(part.vocabulary_VH, whole.vocabulary_VH)
        assert part.fingerprint == whole.fingerprint
        assert (part.width, part.task_type, part.dtype) == (whole.width, whole.task_type, whole.dtype)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "mamba"])
def test_the_other_weights_are_not_read(family, tmp_path):
    tiny = tiny_backbone(family)
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    part = Backbone.embeddings_of(tmp_path, "float32", "cpu")
    read = {name for name, each in part.model.named_parameters() if each.device.type != "meta"}
    assert len(read) == 1


def test_embeddings_of_a_model_in_several_files(tmp_path):
    tiny = tiny_backbone()
    tiny.model.save_pretrained(tmp_path, max_shard_size="20KB")
    tiny.tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    part = Backbone.embeddings_of(tmp_path, "float32", "cpu")
    assert torch.equal(part.vocabulary_VH, tiny.vocabulary_VH)
    assert part.fingerprint == Backbone.from_pretrained(tmp_path, "float32", "cpu").fingerprint


def test_embeddings_of_no_model_are_refused_like_a_model(tmp_path):
    for name in (tmp_path, tmp_path / "none", "nobody/nothing"):
        with pytest.raises(ModelError, match="cannot be loaded"):
            Backbone.embeddings_of(name)


def test_embeddings_of_broken_files_are_refused(saved):
    (saved / "model.safetensors").write_bytes(b"no model")
    with pytest.raises(ModelError, match="cannot be loaded"):
        Backbone.embeddings_of(saved)


def test_whole_model_is_loaded_where_the_files_name_other_weights(saved):
    file = saved / "model.safetensors"
    tensors = load_file(file)
    save_file({name.removeprefix("model."): each for name, each in tensors.items()}, file, metadata={"format": "pt"})
    part = Backbone.embeddings_of(saved, "float32", "cpu")
    assert all(each.device.type == "cpu" for each in part.model.parameters())
