"""Made-up vocabularies without a model."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ptuning.inspection.vocabulary.embeddings import Vocabulary


class Names:
    """A tokenizer whose tokens are called by their numbers."""

    all_special_ids: tuple[int, ...] = ()
    added_tokens_decoder: Mapping[int, Any] = MappingProxyType({})

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return [self.decode(row) for row in rows]

    def decode(self, ids: list[int]) -> str:
        return " ".join(f"t{i}" for i in ids)

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        return f"t{ids}" if isinstance(ids, int) else [f"t{i}" for i in ids]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cloud(num: int = 1500, width: int = 32, seed: int = 0) -> Vocabulary:
    """Tokens around a mean, with more variance in some dimensions than in others."""
    stretched_NH = drawn(num, width, seed=seed) * torch.linspace(0.4, 1.6, width)
    return Vocabulary(stretched_NH + 0.8, Names())


def in_order(found_N: list[int], values_V: Tensor, descending: bool = True, rounding: float = 1e-6) -> bool:
    """Whether ids are the first by their values, each once; those that only rounding tells apart may change places.

    Args:
        found_N: The ids, the first by value first.
        values_V: Every id's value, computed by itself.
        descending: Whether the highest value is first.
        rounding: How far two values are apart that rounding may swap.
    """
    best_N = values_V.sort(descending=descending).values[: len(found_N)]
    return len(set(found_N)) == len(found_N) and bool(((values_V[found_N] - best_N).abs() <= rounding).all())
