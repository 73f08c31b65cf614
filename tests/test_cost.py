"""The operations counted on paper are those that torch counts when the reference runs."""

import pytest
import torch
from families import tiny_backbone
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ptuning import cost, initializers
from ptuning.data import Example
from ptuning.objective import loss_sum


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
