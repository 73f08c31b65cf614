"""The last layer at the scored tokens alone: the same logits and gradients, less work, and nothing left behind."""

import pytest
import torch
from families import ATTENTION, tiny_backbone
from torch.utils.flop_counter import FlopCounterMode

from ptuning.data.examples import Example
from ptuning.forward import paths as forward
from ptuning.model import capabilities
from ptuning.model.kernels.last_layer import LastLayerCut, SomeTokens, token_by_token_weights
from ptuning.model.kernels.switch import fast_kernels
from ptuning.prompts import initializers


@pytest.mark.parametrize("family", sorted(ATTENTION))
def test_scored_tokens_get_the_same_logits_and_gradients(family: str) -> None:
    backbone = tiny_backbone(family)
    states = backbone.embed(torch.randint(3, 200, (2, 7), generator=torch.Generator().manual_seed(0))).detach()
    scored = torch.tensor([[0, 0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0]]) > 0
    found = []
    tokens = SomeTokens((2, 7), scored.flatten().nonzero()[:, 0])
    cut = LastLayerCut(token_by_token_weights(backbone.model), tokens)
    for mode in (fast_kernels(cut=cut), torch.enable_grad()):
        leaf = states.clone().requires_grad_()
        with mode:
            logits = backbone.model(inputs_embeds=leaf, use_cache=False).logits[scored]
        logits.square().mean().backward()
        assert leaf.grad is not None
        found.append((logits.detach(), leaf.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def test_less_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone("llama")
    prompt_PH = initializers.from_vocabulary(backbone.vocabulary_VH, 4)
    batch = backbone.collate([Example([-1, -2, -3, -4, *range(b, b + 40)], [3]) for b in (5, 60)])
    assert backbone.supports_joint_prefix  # found out by running it: before the operations are counted
    monkeypatch.setattr("ptuning.model.kernels.linear._product", lambda: None)  # torch counts its own
    counted = []
    for weights in (backbone._token_by_token_weights, []):
        monkeypatch.setattr(backbone, "_token_by_token_weights", weights)
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            forward.label_logits(backbone, prompt_PH, batch)
        counted.append(flops.get_total_flops())
    assert counted[0] < 0.85 * counted[1]  # of two layers and a head


def test_weights_that_another_layer_has_too_are_multiplied_with_all_tokens() -> None:
    model = tiny_backbone("llama").model
    last, first = model.model.layers[-1], model.model.layers[0]
    last.mlp.up_proj.weight = first.mlp.up_proj.weight
    found = {id(each.weight) for each in token_by_token_weights(model)}
    assert not found & {id(each.weight) for each in (last.mlp.up_proj, last.mlp.gate_proj, last.mlp.down_proj)}
    assert {id(last.self_attn.q_proj.weight), id(last.self_attn.o_proj.weight)} <= found


def test_layers_that_run_more_than_once_in_a_pass_are_not_cut() -> None:
    backbone = tiny_backbone("llama")
    layers = backbone.model.model.layers
    assert capabilities.last_layer_can_be_cut(backbone, token_by_token_weights(backbone.model))
    last, own = layers[-1], layers[-1].forward
    last.forward = lambda states, **options: own(own(states, **options), **options)  # twice, as in looped models
    assert not capabilities.last_layer_can_be_cut(backbone, token_by_token_weights(backbone.model))


def test_a_network_that_mixes_tokens_is_not_cut() -> None:
    backbone = tiny_backbone("llama")
    between = backbone.model.model.layers[-1].mlp.act_fn
    assert capabilities.last_layer_can_be_cut(backbone, token_by_token_weights(backbone.model))
    between.forward = lambda states: states.cumsum(dim=1)
    assert not capabilities.last_layer_can_be_cut(backbone, token_by_token_weights(backbone.model))


def test_a_head_that_mixes_tokens_is_not_cut() -> None:
    backbone = tiny_backbone("llama")
    head = backbone.model.lm_head
    assert capabilities.can_cut_head(backbone)
    own = head.forward
    head.forward = lambda states: own(states).cumsum(dim=1)
    assert not capabilities.can_cut_head(backbone)
    head.forward = lambda states: own(states[:, -1:])
    assert not capabilities.can_cut_head(backbone)


def test_on_a_cpu_the_head_multiplies_the_scored_tokens_alone() -> None:
    backbone, shapes = tiny_backbone("llama"), list[torch.Size]()
    prompt_PH = initializers.from_vocabulary(backbone.vocabulary_VH, 4)
    rows = [Example([-1, -2, -3, -4, *range(b, b + 9)], [3] * num) for b, num in ((5, 1), (60, 4), (90, 1))]
    forward.label_logits(backbone, prompt_PH, backbone.collate(rows))  # what it can do is found out by running it
    backbone.model.lm_head.register_forward_hook(lambda _, states, logits: shapes.append(logits.shape[:-1]))
    forward.label_logits(backbone, prompt_PH, backbone.collate(rows))
    assert shapes == [(1, 6)]
