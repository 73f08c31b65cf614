"""The vocabulary's embeddings: which rows are equal, which tokens are special, what random vectors look like.

Everything reads the vocabulary in chunks, so that memory stays bounded. Knows nothing of prompts.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from ptuning.model import Backbone

CHUNK = 8192  # rows compared at a time
_MOST_KEPT = 2**25  # chunks of a vocabulary with at most so many numbers are kept, twice in fp32
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_UNUSED = re.compile(r"unused|reserved|extra_id|<pad\d|^<\|?dummy", re.IGNORECASE)
_UNUSED_NORM = 0.25  # share of the median norm: a token that was never trained keeps its small first norm


@dataclass(frozen=True)
class Vocabulary:
    """Token embeddings `[V, H]` and the tokenizer that names them."""

    matrix_VH: Tensor
    """Input embeddings as the model uses them, in its precision."""
    tokenizer: Any
    """The model's tokenizer."""

    @classmethod
    def of(cls, backbone: Backbone) -> Self:
        """The vocabulary of a model."""
        return cls(backbone.vocabulary_VH, backbone.tokenizer)

    def __len__(self) -> int:
        """V."""
        return len(self.matrix_VH)

    @property
    def width(self) -> int:
        """H."""
        return self.matrix_VH.shape[1]

    @property
    def device(self) -> torch.device:
        """The device that holds it."""
        return self.matrix_VH.device

    def rows(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Embeddings of ids in fp32: `[N, H]`, for a tensor of ids `[..., H]`."""
        return self.matrix_VH[torch.as_tensor(ids, dtype=torch.long, device=self.device)].float()

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each token."""
        return self.tokenizer.batch_decode([[i] for i in ids]) if ids else []

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The different rows in chunks: rising ids `[C]`; embeddings, and these scaled to length 1, fp32 `[C, H]`."""
        return iter(self._kept) if self.matrix_VH.numel() <= _MOST_KEPT else self._made()

    @cached_property
    def _kept(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        return list(self._made())

    def _made(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for ids_C in self.different_U.split(CHUNK):
            rows_CH = self.matrix_VH[ids_C].float()
            yield ids_C, rows_CH, unit(rows_CH)

    @cached_property
    def mean_H(self) -> Tensor:
        """The mean embedding, fp32."""
        total_H = sum((rows_CH.double().sum(dim=0) for rows_CH in self.matrix_VH.split(CHUNK)), torch.zeros(()))
        return (total_H / len(self)).float()

    @cached_property
    def norms_V(self) -> Tensor:
        """The L2 norm of each row, fp32."""
        return torch.cat([rows_CH.float().norm(dim=1) for rows_CH in self.matrix_VH.split(CHUNK)])

    @cached_property
    def same_V(self) -> Tensor:
        """For each id the lowest id with the same embedding."""
        first: dict[bytes, int] = {}
        same = list[int]()
        for rows_CH in self.matrix_VH.split(CHUNK):
            plain_CH = (rows_CH + 0.0).cpu().contiguous()  # -0 is 0
            for row in plain_CH.view(torch.uint8).numpy():
                digest = hashlib.blake2b(row.data, digest_size=16).digest()
                same.append(first.setdefault(digest, len(same)))
        return torch.tensor(same, device=self.device)

    @cached_property
    def different_U(self) -> Tensor:
        """The ids of different rows; of equal rows the lowest id."""
        return (self.same_V == torch.arange(len(self), device=self.device)).nonzero().flatten()

    def is_same(self, one: int, other: int | None) -> bool:
        """Whether two ids have the same embedding."""
        return other is not None and bool(self.same_V[one] == self.same_V[other])

    @cached_property
    def _special(self) -> set[int]:
        added = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return added | set(self.tokenizer.all_special_ids)

    @cached_property
    def _num_same_V(self) -> Tensor:
        return torch.bincount(self.same_V, minlength=len(self))[self.same_V]

    @cached_property
    def _least_norm(self) -> float:
        return _UNUSED_NORM * float(self.norms_V.median())

    def flags(self, i: int) -> list[str]:
        """The oddities of a token: special, unused, byte, duplicate."""
        text = self.tokenizer.convert_ids_to_tokens(i) or ""
        is_unused = not text or bool(_UNUSED.search(text)) or float(self.norms_V[i]) < self._least_norm
        found = {
            "special": i in self._special,
            "unused": is_unused,
            "byte": bool(_BYTE.fullmatch(text)) or "�" in self.tokenizer.decode([i]),
            "duplicate": int(self._num_same_V[i]) > 1,
        }
        return [name for name, holds in found.items() if holds]

    @cached_property
    def plain_ids(self) -> list[int]:
        """Ids of ordinary tokens, neither special nor unused; random prompts are drawn from these."""
        texts = self.tokenizer.convert_ids_to_tokens(list(range(len(self))))
        is_long_V = (self.norms_V >= self._least_norm).tolist()
        ordinary = [
            i
            for i, (text, is_long) in enumerate(zip(texts, is_long_V, strict=True))
            if text and is_long and i not in self._special and not _UNUSED.search(text)
        ]
        return ordinary or list(range(len(self)))

    def random_like(self, num: int, generator: torch.Generator) -> Tensor:
        """Gaussian vectors with the vocabulary's mean and covariance, `[num, H]`.

        Each vector is the mean plus a sum of the centred rows, weighted by independent normal numbers over sqrt(V).
        It has exactly that covariance, which never needs to be factored.
        """
        drawn_NH = torch.zeros(num, self.width, device=self.device)
        for rows_CH in self.matrix_VH.split(CHUNK):
            weights_NC = torch.randn(num, len(rows_CH), generator=generator).to(self.device)
            drawn_NH += weights_NC @ (rows_CH.float() - self.mean_H)
        return self.mean_H + drawn_NH / len(self) ** 0.5


def unit(rows_NH: Tensor) -> Tensor:
    """Rows scaled to length 1."""
    return functional.normalize(rows_NH, dim=1)
