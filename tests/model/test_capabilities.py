"""What a model can do follows from its architecture; precision, weights and rounding do not change it."""

import logging
import threading

import pytest
import torch
from conftest import ASSETS
from families import ENCODER_DECODER, FAMILIES, tiny_backbone, tiny_model, tiny_tokenizer
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, BertConfig, BertLMHeadModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ptuning.model import Backbone, architecture, capabilities
from ptuning.model.architecture import miniature_of
from ptuning.model.capabilities import is_capable

CAUSAL = sorted(set(FAMILIES) - set(ENCODER_DECODER))
SOME = ("llama", "mistral", "gpt2", "mpt", "deepseek_v3", "mamba")
OF_ALL = (
    capabilities.reads_embeddings,
    capabilities.passes_gradients,
    capabilities.is_causal,
    capabilities.ignores_left_padding,
    capabilities.ignores_padding_gaps,
)
OF_ATTENTION = (capabilities.supports_block_masks, capabilities.supports_joint_prefix)


def probes_of(backbone):
    return [*OF_ALL, *(OF_ATTENTION if backbone.supports_prefix_cache else ()), capabilities.can_cut_last_layer]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """Decisions of other tests are forgotten."""
    monkeypatch.setattr(architecture, "_BUILT", {})
    monkeypatch.setattr(capabilities, "_KNOWN", {})


@pytest.mark.parametrize("family", CAUSAL)
def test_an_architecture_can_do_what_its_models_can(family):
    backbone = tiny_backbone(family)
    assert miniature_of(backbone.model) is not None
    for probe in probes_of(backbone):
        assert is_capable(backbone, probe) == probe(backbone), probe.__name__


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", SOME)
def test_neither_precision_nor_weights_decide(family, dtype, monkeypatch):
    expected = tiny_backbone(family).capabilities
    monkeypatch.setattr(capabilities, "_KNOWN", {})
    monkeypatch.setattr(architecture, "_BUILT", {})
    spoiled = tiny_backbone(family)
    with torch.no_grad():
        for parameter in spoiled.model.to(dtype).parameters():
            parameter.fill_(torch.nan)
    assert spoiled.capabilities == expected


class Rounding(TorchFunctionMode):
    """Adds an error to each product, ten times as large as that of float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        names = ("linear", "matmul", "__matmul__", "scaled_dot_product_attention")
        if getattr(func, "__name__", "") not in names or found.is_meta:
            return found
        return found + 1e-6 * found.abs().max() * (torch.rand_like(found) - 0.5)


@pytest.mark.parametrize("family", CAUSAL)
def test_rounding_does_not_decide(family, monkeypatch):
    expected = tiny_backbone(family).capabilities
    monkeypatch.setattr(capabilities, "_KNOWN", {})
    with Rounding():
        assert tiny_backbone(family).capabilities == expected
    monkeypatch.setattr(capabilities, "_KNOWN", {})
    with torch.autocast("cpu", torch.bfloat16):
        assert tiny_backbone(family).capabilities == expected


@pytest.mark.real_model
def test_the_real_model_can_do_the_same_in_every_precision(real_backbone):
    assert all(real_backbone.capabilities.values())
    for dtype in ("bfloat16", "float16"):
        half = Backbone.from_pretrained(ASSETS / "smollm2-135m-instruct", dtype, "cpu")
        assert half.capabilities == real_backbone.capabilities
        assert miniature_of(half.model) is miniature_of(real_backbone.model)


def test_model_whose_tokens_see_later_ones_is_not_causal():
    config = BertConfig(
        vocab_size=400, hidden_size=96, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128
    )
    bert = Backbone.of(BertLMHeadModel(config), tiny_tokenizer())
    assert miniature_of(bert.model) is not None
    assert not bert.is_causal


def test_a_decision_is_told_once(caplog):
    with caplog.at_level(logging.INFO, logger="ptuning.model.capabilities"):
        for seed in range(3):
            assert tiny_backbone(seed=seed).is_causal
    line = "LlamaForCausalLM, is_causal: True, found out by running a tiny model of its architecture"
    assert [each.getMessage() for each in caplog.records] == [line]


def test_the_users_random_numbers_stay_the_same():
    backbones = [tiny_backbone(family) for family in SOME]
    before = torch.get_rng_state()
    for backbone in backbones:
        assert backbone.capabilities["is_causal"]
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_find_out_once(monkeypatch):
    built, asked, build = [], [], architecture._built
    monkeypatch.setattr(architecture, "_built", lambda *args: built.append(args) or build(*args))
    backbones = [tiny_backbone(seed=seed) for seed in range(8)]
    found, together = [], threading.Barrier(len(backbones))

    def noted(backbone):
        asked.append(backbone)
        return capabilities.ignores_left_padding(backbone)

    def ask(backbone):
        together.wait()
        found.append(is_capable(backbone, noted))

    threads = [threading.Thread(target=ask, args=(each,)) for each in backbones]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * len(backbones)
    assert (len(built), len(asked)) == (1, 1)


def test_a_model_that_is_changed_is_asked_itself(caplog):
    looped = tiny_backbone()
    last, own = looped.model.model.layers[-1], looped.model.model.layers[-1].forward
    last.forward = lambda states, **options: own(own(states, **options), **options)  # twice, as in looped models
    assert not looped._token_by_token_weights
    mixing = tiny_backbone()
    mixing.model.model.layers[0].register_forward_hook(lambda _, inputs, output: output + output.flip(1))
    with caplog.at_level(logging.INFO, logger="ptuning.model.capabilities"):
        assert not mixing.is_causal
    assert caplog.records[0].getMessage().endswith("False, found out by running the model itself")
    assert tiny_backbone().is_causal
    assert tiny_backbone()._token_by_token_weights


def test_attention_of_ones_own_counts():
    def backwards(module, query, key, value, attention_mask, **options):
        return sdpa_attention_forward(module, query, key, value, None, is_causal=False, **options)

    AttentionInterface.register("test_backwards", backwards)
    backbone = Backbone.of(*tiny_model("llama"))
    backbone.model.set_attn_implementation("test_backwards")
    assert not backbone.is_causal
    assert tiny_backbone().is_causal
