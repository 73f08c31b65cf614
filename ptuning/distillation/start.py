"""The initial embeddings of virtual tokens that take the place of a text.

Knows nothing of models or tokenizers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ptuning.prompts import initializers


def from_chunks(vocabulary_VH: Tensor, text_ids: Sequence[int], num_virtual_tokens: int) -> Tensor:
    """The mean embedding of each of P pieces of a text, all as long as they can be: `[P, H]` fp32.

    A text of fewer than P tokens is repeated.
    """
    if len(text_ids) < num_virtual_tokens:
        return initializers.from_text(vocabulary_VH, text_ids, num_virtual_tokens)
    pieces = torch.tensor(list(text_ids), device=vocabulary_VH.device).tensor_split(num_virtual_tokens)
    return torch.stack([vocabulary_VH[piece].float().mean(dim=0) for piece in pieces])


def from_first_tokens(vocabulary_VH: Tensor, text_ids: Sequence[int], num_virtual_tokens: int) -> Tensor:
    """The embeddings of a text's first tokens: `[P, H]` fp32; a text of fewer tokens is repeated."""
    return initializers.from_text(vocabulary_VH, text_ids, num_virtual_tokens)


STARTS = {"chunks": from_chunks, "first_tokens": from_first_tokens}
"""Name in a config -> the function."""
