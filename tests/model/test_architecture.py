"""A tiny model stands for every model of its architecture, and for no model that computes something else."""

import time

import accelerate
import peft
import pytest
import torch
from families import tiny_backbone
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedModel,
)

from ptuning.model import Backbone, architecture
from ptuning.model.architecture import miniature_of
from ptuning.model.quantization import quantize

LARGE = {
    "llama": LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, vocab_size=128256, max_position_embeddings=131072,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    ),
    "gemma3": Gemma3TextConfig(num_hidden_layers=26, sliding_window=512),
    "gpt_oss": GptOssConfig(),
    "mixtral": MixtralConfig(intermediate_size=1360),  # 1360 / 16 is no multiple of 4
    "deepseek": DeepseekV3Config(),
    "phi3": Phi3Config(
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48,
                         "long_factor": [2.0] * 48, "original_max_position_embeddings": 4096},
        max_position_embeddings=131072,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_built(monkeypatch):
    """Models of other tests are forgotten."""
    monkeypatch.setattr(architecture, "_BUILT", {})


def on_meta(config) -> PreTrainedModel:
    """A model without memory for its weights, which cannot be run."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", LARGE)
def test_a_large_model_has_a_tiny_one(name):
    small = miniature_of(on_meta(LARGE[name]))
    assert type(small).__name__ == type(on_meta(LARGE[name])).__name__
    assert sum(each.numel() for each in small.parameters()) < 2**25
    assert {(each.dtype, each.device.type) for each in small.parameters()} == {(torch.float32, "cpu")}


def test_a_large_model_is_decided_on_in_about_a_second():
    backbone = Backbone.of(on_meta(LARGE["llama"]), None)
    began = time.thread_time()
    assert all(backbone.capabilities.values())
    assert time.thread_time() - began < 3
    assert sum(each.numel() for each in miniature_of(backbone.model).parameters()) < 2**21


def test_heads_share_keys_and_windows_are_as_wide_as_in_the_model():
    llama, gemma = (miniature_of(on_meta(LARGE[name])).config for name in ("llama", "gemma3"))
    assert (llama.num_attention_heads, llama.num_key_value_heads) == (32, 8)
    assert gemma.sliding_window == 512


def test_experts_are_as_wide_as_their_products_allow():
    assert miniature_of(on_meta(LARGE["mixtral"])).config.intermediate_size == 88


def test_every_kind_of_layer_is_there_and_the_last_is_of_the_same_kind():
    gemma = miniature_of(on_meta(LARGE["gemma3"])).config
    assert gemma.layer_types == ["full_attention", "sliding_attention"]
    assert LARGE["gemma3"].layer_types[-1] == "sliding_attention"
    layers = miniature_of(on_meta(LARGE["deepseek"])).model.layers
    assert [type(each.mlp).__name__ for each in layers] == ["DeepseekV3MLP", "DeepseekV3MoE"]
    assert len(layers[1].mlp.experts.gate_up_proj) == 16


@pytest.mark.parametrize(
    "family", ["llama", "gemma2", "gemma3_text", "gpt2", "opt", "bloom", "mpt", "falcon", "mixtral"]
)
def test_tokens_and_their_order_show_in_the_logits(family):
    small = miniature_of(tiny_backbone(family).model)
    rows = torch.tensor([[1, 2, 3], [4, 2, 3], [2, 1, 3]])
    with torch.no_grad():
        one_V, *others = small(inputs_embeds=small.get_input_embeddings()(rows)).logits[:, -1]
    assert all((each_V - one_V).abs().max() > 5e-3 * one_V.abs().max() for each_V in others)


def test_models_of_one_architecture_have_the_same_one():
    small = miniature_of(tiny_backbone().model)
    half, quantized = tiny_backbone(seed=1).model.to(torch.bfloat16), tiny_backbone().model
    half.config.dtype = torch.bfloat16
    quantize(quantized, "int8")
    assert miniature_of(half) is miniature_of(quantized) is small
    assert miniature_of(tiny_backbone(num_key_value_heads=4).model) is not small


def test_checkpointing_watching_and_offloading_do_not_count():
    small = miniature_of(tiny_backbone().model)
    checkpointed, watched, offloaded = (
        tiny_backbone().with_checkpointing().model,
        *(tiny_backbone().model for _ in "12"),
    )
    watched(input_ids=torch.tensor([[1, 2]]), output_hidden_states=True)
    accelerate.cpu_offload(offloaded, execution_device="cpu")
    assert all(miniature_of(each) is small for each in (checkpointed, watched, offloaded))


def test_a_model_that_computes_something_else_has_none():
    hooked, replaced, swapped, switched = (tiny_backbone().model for _ in range(4))
    hooked.model.layers[0].register_forward_pre_hook(lambda module, inputs: None)
    replaced.lm_head.forward = lambda states: states
    swapped.model.norm = torch.nn.Identity()
    switched.model.layers[0].self_attn.is_causal = False
    for each in (hooked, replaced, swapped, switched):
        assert miniature_of(each) is None


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # which PEFT reads
def test_a_model_with_adapters_has_none():
    adapted = peft.get_peft_model(tiny_backbone().model, peft.LoraConfig(task_type="CAUSAL_LM"))
    for each in (adapted, adapted.base_model.model):
        assert miniature_of(each) is None
