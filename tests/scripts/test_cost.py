"""The operations counted on paper are those that torch counts when the reference runs."""

import pytest
import torch
from benchmark import cost
from families import tiny_backbone
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ptuning.data.examples import Example
from ptuning.forward.objective import loss_sum
from ptuning.forward.prefix_cache import Prefix
from ptuning.prompts import initializers


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_counts_are_torchs_own(family: str) -> None:
    backbone, num_text = tiny_backbone(family), 40
    prompt_PH = initializers.from_vocabulary(backbone.vocabulary_VH, 4).requires_grad_()
    example = Example([-1, -2, -3, -4, *range(10, 10 + num_text)], [3])
    batch = backbone.collate([example])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward, torch.no_grad():
        loss_sum(backbone, prompt_PH, batch, "splice")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as both:
        loss_sum(backbone, prompt_PH, batch, "splice").backward()
    # The reference runs the answer too and attends to pairs that the mask hides.
    num_tokens = len(example)
    rows = cost.Rows(0, [num_tokens], 1)
    config = backbone.model.config
    hidden = 4 * (num_tokens**2 - rows.num_pairs) * config.num_hidden_layers * config.hidden_size
    assert cost.forward_flops(backbone.model, rows) + hidden == forward.get_total_flops()
    assert cost.training_flops(backbone.model, rows) + 3 * hidden == pytest.approx(both.get_total_flops(), rel=0.02)


def test_what_rows_share_is_counted_once() -> None:
    rows = cost.Rows(4, [2, 3], 2)
    assert rows.num_tokens == 9
    assert rows.num_pairs == 10 + (4 + 1) + (4 + 2) + (4 + 1) + (4 + 2) + (4 + 3)


@pytest.mark.parametrize("num_prefix_tokens", [4, 40])
def test_what_is_kept_for_the_backward_pass_is_about_what_is_told(num_prefix_tokens: int) -> None:
    backbone = tiny_backbone("llama", hidden_size=64, intermediate_size=160, num_key_value_heads=4)
    backbone.__dict__["supports_joint_prefix"] = False  # it would leave lines half empty among rows of one length
    drawn = initializers.from_vocabulary(backbone.vocabulary_VH, num_prefix_tokens).requires_grad_()
    virtual = list(range(-1, -num_prefix_tokens - 1, -1))
    batch = backbone.collate([Example([*virtual, *range(10 * b, 10 * b + 60)], [3]) for b in range(1, 7)])
    weights = {each.untyped_storage().data_ptr() for each in backbone.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: alive.append(each) or note(each), lambda each: each):
        loss_sum(backbone, drawn, batch)
    rows = cost.Rows(batch.num_prefix_tokens, [own + 1 - batch.num_prefix_tokens for own in batch.num_unscored], 6)
    assert sum(kept.values()) == pytest.approx(cost.kept_bytes(backbone.model, rows, 4), rel=0.2)


def test_a_held_prefix_is_as_large_as_told() -> None:
    backbone = tiny_backbone("llama")
    prefix = Prefix.of(backbone, backbone.vocabulary_VH[:5], [-1, -2, -3, -4, -5])
    held = sum(each.nbytes for layer in prefix.layers for each in layer)
    assert held == cost.prefix_bytes(backbone.model, 5, 4)
