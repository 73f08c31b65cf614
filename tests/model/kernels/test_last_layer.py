"""The last layer at the scored tokens alone: the same logits and gradients, less work, and nothing left behind."""

import pytest
import torch
from families import ATTENTION, tiny_backbone
from torch.utils.flop_counter import FlopCounterMode

from ptuning.data.examples import Example
from ptuning.forward import paths as forward
from ptuning.forward import shared_prefix as shared_prefix_module
from ptuning.model.kernels.last_layer import only_scored
from ptuning.prompts import initializers


@pytest.mark.parametrize("family", sorted(ATTENTION))
def test_scored_tokens_get_the_same_logits_and_gradients(family: str) -> None:
    backbone = tiny_backbone(family)
    states = backbone.embed(torch.randint(3, 200, (2, 7), generator=torch.Generator().manual_seed(0))).detach()
    scored = torch.tensor([[0, 0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0]]) > 0
    found = []
    for mode in (only_scored(backbone.model, scored), torch.enable_grad()):
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
    assert backbone.joins  # found out by running it: before the operations are counted
    monkeypatch.setattr("ptuning.model.kernels.linear._PRODUCT", None)  # torch counts its own products only
    counted = []
    for mode in (only_scored, lambda *_: torch.no_grad()):
        monkeypatch.setattr(shared_prefix_module, "only_scored", mode)
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            forward.label_logits(backbone, prompt_PH, batch)
        counted.append(flops.get_total_flops())
    assert counted[0] < 0.85 * counted[1]  # of two layers and a head


def test_nothing_is_left_on_the_model_when_it_fails() -> None:
    backbone = tiny_backbone("llama")
    scored = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(ZeroDivisionError), only_scored(backbone.model, scored):
        raise ZeroDivisionError
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in backbone.model.modules())
