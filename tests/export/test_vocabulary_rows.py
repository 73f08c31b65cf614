"""Virtual tokens as rows of a vocabulary."""

from typing import Any

import pytest
import torch
from families import tiny_model, tiny_tokenizer
from torch import nn
from transformers import GPTJConfig, GPTJForCausalLM

from ptuning.errors import ModelError
from ptuning.export.vocabulary_rows import write_rows
from ptuning.model import Backbone


def drawn(width: int, count: int = 40) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_are_only_looked_up_are_the_prompt_itself(dtype: torch.dtype) -> None:
    model, tokenizer = tiny_model("llama")
    backbone, prompt_PH = Backbone.of(model.to(dtype), tokenizer), drawn(32)
    assert write_rows(backbone, range(338, 378), prompt_PH) == 0.0
    assert torch.equal(backbone.embed(torch.arange(338, 378)), prompt_PH.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_are_scaled_are_seen_to_the_last_place(dtype: torch.dtype) -> None:
    model, tokenizer = tiny_model("gemma3_text")
    backbone, prompt_PH = Backbone.of(model.to(dtype), tokenizer), drawn(32)
    write_rows(backbone, range(338, 378), prompt_PH)
    seen_PH, wanted_PH = backbone.embed(torch.arange(338, 378)), prompt_PH.to(dtype)
    assert ((seen_PH - wanted_PH).abs() <= wanted_PH.abs() * torch.finfo(dtype).eps * 1.01).all()
    assert float((seen_PH == wanted_PH).float().mean()) > 0.8


def test_other_rows_stay_what_they_were() -> None:
    model, tokenizer = tiny_model("gemma3_text", vocab_size=384)
    backbone = Backbone.of(model, tokenizer)
    before = backbone.vocabulary_VH.clone()
    write_rows(backbone, [340, 383, 386], drawn(32, 3))
    kept = [i for i in range(384) if i not in (340, 383)]
    assert torch.equal(backbone.vocabulary_VH[kept], before[kept])
    assert model.config.vocab_size == 387


def test_biases_of_an_output_layer_rule_the_tokens_out() -> None:
    tokenizer = tiny_tokenizer()
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4, "n_positions": 64}
    model = GPTJForCausalLM(GPTJConfig(**sizes, vocab_size=340, bos_token_id=0, eos_token_id=1)).eval()
    backbone = Backbone.of(model, tokenizer, "tiny-gptj")
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits[..., :339].log_softmax(dim=-1)
    write_rows(backbone, [339, 340], drawn(32, 2))
    after = model(ids).logits.log_softmax(dim=-1)
    assert (after[..., 339:].exp() == 0).all()
    assert torch.allclose(before, after[..., :339], atol=1e-6)


def test_embeddings_that_are_more_than_scaled_rows_are_refused() -> None:
    class Shifted(nn.Embedding):
        def forward(self, input: Any) -> torch.Tensor:
            return super().forward(input) + 1.0

    model, tokenizer = tiny_model("llama")
    model.set_input_embeddings(Shifted(340, 32))
    backbone = Backbone.of(model, tokenizer, "tiny-shifted")
    with pytest.raises(
        ModelError, match="tiny-shifted, whose embeddings are not rows of its vocabulary times a number"
    ):
        write_rows(backbone, [338, 339], drawn(32, 2))
