"""What a soft prompt means, in plain transformers: its embeddings before one row's, and nothing else.

Every behaviour of the suite is held against this, one row at a time, without padding, without a cache.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SEED = 3


@dataclass(frozen=True)
class Line:
    """A row as ids: the question as the tokenizer frames it, and the answer."""

    ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


def line(tokenizer: Any, text: str, answer: str = "") -> Line:
    """A row of text."""
    bare = tokenizer(answer, add_special_tokens=False).input_ids
    return Line(tuple(tokenizer(text).input_ids), (*bare, tokenizer.eos_token_id))


def embedded(model: Any, prompt_PH: Tensor, ids: tuple[int, ...]) -> Tensor:
    """The prompt before the embeddings of ids: `[1, P + T, H]`; in its places where ids hold them (-1, -2, …)."""
    if min(ids, default=0) >= 0:
        ids = (*range(-1, -len(prompt_PH) - 1, -1), *ids)
    embed = model.get_input_embeddings()
    return torch.stack([embed(torch.tensor(i)) if i >= 0 else prompt_PH[-1 - i] for i in ids])[None]


def logits(model: Any, prompt_PH: Tensor, row: Line) -> Tensor:
    """Logits `[A, V]` that predict each token of the row's answer."""
    if model.config.is_encoder_decoder:
        decoder_ids = [model.config.decoder_start_token_id, *row.answer_ids[:-1]]
        inputs = {"decoder_input_ids": torch.tensor([decoder_ids])}
        return model(inputs_embeds=embedded(model, prompt_PH, row.ids), use_cache=False, **inputs).logits[0]
    whole = embedded(model, prompt_PH, (*row.ids, *row.answer_ids[:-1]))
    return model(inputs_embeds=whole, use_cache=False).logits[0, -len(row.answer_ids) :]


def loss(model: Any, prompt_PH: Tensor, rows: list[Line]) -> Tensor:
    """Mean cross-entropy over the answers' tokens."""
    predicted_NV = torch.cat([logits(model, prompt_PH, row) for row in rows])
    targets_N = torch.tensor([token for row in rows for token in row.answer_ids])
    return torch.nn.functional.cross_entropy(predicted_NV, targets_N)


@torch.no_grad()
def greedy(model: Any, prompt_PH: Tensor, ids: tuple[int, ...], num_tokens: int) -> list[int]:
    """Each token is the most likely one after the whole, which is run anew; the end-of-text token is left out."""
    written: list[int] = []
    while len(written) < num_tokens:
        token = int(logits(model, prompt_PH, Line(ids, (*written, 0)))[-1].argmax())
        if token == model.config.eos_token_id:
            break
        written.append(token)
    return written


def generated(model: Any, prompt_PH: Tensor, ids: tuple[int, ...], num_tokens: int, **options: Any) -> list[int]:
    """What transformers' own `generate` writes from the embeddings of this row alone."""
    torch.manual_seed(SEED)
    settings = {"do_sample": False, "max_new_tokens": num_tokens, "pad_token_id": 2, "eos_token_id": 1, **options}
    new = model.generate(inputs_embeds=embedded(model, prompt_PH, ids), **settings)[0].tolist()
    new = new[1:] if model.config.is_encoder_decoder else new
    return new[: new.index(1)] if 1 in new else new
