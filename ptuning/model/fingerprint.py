"""Tells base models of the same shape apart by a sample of their weights.

Uses only a model's configuration and named parameters. Knows nothing of prompts.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ARCHITECTURE_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_NUM_SAMPLED_WEIGHTS = 256
_SHARE_EQUAL = 0.8  # a weight midway between two bfloat16 numbers may round to either when it is rounded twice


@dataclass(frozen=True)
class Fingerprint:
    """A base model's architecture and a sample of its weights.

    Models in the same precision match if the sampled weights are equal. In different precisions, most of the weights
    must be equal after rounding to bfloat16.
    """

    architecture: Mapping[str, Any]
    """model_type, hidden_size, num_hidden_layers, num_attention_heads, vocab_size."""
    weights: tuple[float, ...]
    """256 weights, evenly spaced over all parameters ordered by name."""
    dtype: str
    """The precision of the weights, e.g. bfloat16."""

    @classmethod
    def of(cls, model: Any, read: Callable[[str], Any] | None = None) -> "Fingerprint":
        """Takes the fingerprint of a transformers model.

        Args:
            model: The model.
            read: Returns a parameter's values by name, as a tensor or something indexed like one; None: the values that
                the model itself holds.
        """
        # Quantized weights are not plain numbers and cannot be compared.
        plain = ((name, each) for name, each in model.named_parameters() if _is_plain(each))
        parameters = sorted(plain, key=lambda pair: pair[0])
        ends = torch.tensor([parameter.numel() for _, parameter in parameters]).cumsum(0)
        places = torch.linspace(0, int(ends[-1]) - 1, _NUM_SAMPLED_WEIGHTS, dtype=torch.float64).long()
        weights = []
        for place, index in zip(places.tolist(), torch.searchsorted(ends, places, right=True).tolist(), strict=True):
            name, parameter = parameters[index]
            offset = torch.tensor(place - int(ends[index]) + parameter.numel())
            values = parameter.detach() if read is None else read(name)
            value = values[tuple(int(i) for i in torch.unravel_index(offset, parameter.shape))]
            weights.append(float(f"{float(value.to(parameter.dtype)):.6g}"))
        config = model.config.get_text_config()
        architecture = {key: getattr(config, key, None) for key in _ARCHITECTURE_KEYS}
        return cls(architecture, tuple(weights), str(model.dtype).removeprefix("torch."))

    def matches(self, other: "Fingerprint") -> bool:
        """Whether both fingerprints are of the same base model."""
        if dict(self.architecture) != dict(other.architecture) or len(self.weights) != len(other.weights):
            return False
        if self.dtype == other.dtype:
            return self.weights == other.weights
        ours, theirs = (torch.tensor(each.weights).bfloat16() for each in (self, other))
        return float((ours == theirs).float().mean()) >= _SHARE_EQUAL

    def __str__(self) -> str:
        """The architecture and a digest of the sampled weights, for messages."""
        shape = self.architecture
        digest = hashlib.sha256(json.dumps(self.weights).encode()).hexdigest()[:8]
        return f"{shape['model_type']} {shape['num_hidden_layers']}x{shape['hidden_size']} {digest}"


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all tensors' bytes, ordered by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        for plain in _plain_tensors(tensor.detach()):
            digest.update(plain.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor itself, or the plain tensors inside a quantized one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain_tensors(getattr(tensor, name))


def _is_plain(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and not hasattr(parameter, "__tensor_flatten__")
