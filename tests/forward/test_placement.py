"""Virtual tokens stand in their places, and the gradient is that of plain indexing."""

import pytest
import torch
from families import tiny_backbone

from ptuning.forward.placement import place

IDS = [[-1, -2, -3, 5, 6], [7, -3, -1, -2, 8], [9, 10, -2, 0, 0]]


@pytest.mark.parametrize("is_one_prompt", [True, False])
def test_embeddings_and_their_gradient_are_those_of_each_token(is_one_prompt: bool) -> None:
    backbone, ids_BT = tiny_backbone(), torch.tensor(IDS)
    size = (3, backbone.width) if is_one_prompt else (3, 3, backbone.width)
    prompt = torch.randn(size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    placed_BTH = place(backbone, prompt, ids_BT)
    rows = [
        [(prompt if is_one_prompt else prompt[b])[-1 - i] if i < 0 else backbone.embed(torch.tensor(i)) for i in ids]
        for b, ids in enumerate(IDS)
    ]
    plain_BTH = torch.stack([torch.stack(row) for row in rows])
    assert torch.equal(placed_BTH, plain_BTH)
    weights_BTH = torch.randn_like(plain_BTH)
    found, expected = (torch.autograd.grad((each * weights_BTH).sum(), prompt)[0] for each in (placed_BTH, plain_BTH))
    torch.testing.assert_close(found, expected)
