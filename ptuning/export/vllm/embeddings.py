"""Embeds token ids with a base's own embedding rows, and writes the result as a server takes it.

Reads of a file only the rows that are asked for. Knows nothing of models, templates or servers.
"""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptuning.errors import PromptError

EMBEDDINGS_FILE = "embeddings.safetensors"
VOCABULARY, PROMPT = "vocabulary", "prompt."  # the tensors' names; a prompt's own name follows the second


class Embeddings:
    """The embedding of every token, and those of each prompt's virtual tokens.

    Args:
        vocabulary_VH: What the model computes with for each token.
        prompts: Name -> the virtual tokens' embeddings `[P, H]`.
    """

    def __init__(self, vocabulary_VH: Tensor, prompts: Mapping[str, Tensor]) -> None:
        self._vocabulary_VH = vocabulary_VH
        self._prompts = {name: each.to(vocabulary_VH.dtype) for name, each in prompts.items()}

    @classmethod
    def load(cls, directory: Path, names: Sequence[str]) -> "Embeddings":
        """Opens an exported directory's embeddings; the vocabulary stays on the disk until rows of it are read.

        Raises:
            PromptError: If the file is missing or broken, or lacks a prompt.
        """
        file = directory / EMBEDDINGS_FILE
        try:
            with safe_open(file, "pt") as tensors:
                prompts = {name: tensors.get_tensor(f"{PROMPT}{name}") for name in names}
                return cls(tensors.get_tensor(VOCABULARY), prompts)
        except (OSError, SafetensorError) as error:
            raise PromptError(
                f"{file} is missing or broken ({error})", "embeddings", "Export the prompts again"
            ) from error

    @property
    def dtype(self) -> str:
        """Their precision, e.g. bfloat16."""
        return str(self._vocabulary_VH.dtype).removeprefix("torch.")

    @property
    def width(self) -> int:
        """H."""
        return self._vocabulary_VH.shape[1]

    def of(self, ids: Sequence[int], name: str | None = None) -> Tensor:
        """Embeddings `[T, H]` of ids; negative ids are virtual tokens of the named prompt."""
        ids_T = torch.tensor(ids, dtype=torch.long)
        embeddings_TH = self._vocabulary_VH[ids_T.clamp(min=0)]
        if name is not None:
            is_virtual_T = ids_T < 0
            embeddings_TH[is_virtual_T] = self._prompts[name][-1 - ids_T[is_virtual_T]]
        return embeddings_TH


def payload(embeddings_TH: Tensor) -> str:
    """Embeddings as a server takes them: a saved tensor in base64.

    The tensor is copied first: a view would be saved with all that it is a view of, and a parameter as a parameter.
    """
    buffer = io.BytesIO()
    torch.save(embeddings_TH.detach().clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def sha256_of(embeddings_PH: Tensor) -> str:
    """Identifies a prompt's embeddings."""
    return hashlib.sha256(embeddings_PH.float().contiguous().numpy().tobytes()).hexdigest()
