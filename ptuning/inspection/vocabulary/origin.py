"""Where a prompt began: the tokens that its virtual tokens were initialised from.

Knows nothing of how it was trained.
"""

from torch import Tensor

from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt


def initial_ids(prompt: SoftPrompt, backbone: Backbone, vocabulary: Vocabulary) -> list[int | None]:
    """The token that each virtual token began at; None where it began at no token, or at another model's."""
    ids = prompt.init.get("token_ids") or []
    is_own = prompt.fingerprint is None or prompt.fingerprint.matches(backbone.fingerprint)
    known = [i for i in ids if i is not None]
    if len(ids) != prompt.num_virtual_tokens or not is_own or max(known, default=0) >= len(vocabulary):
        return [None] * prompt.num_virtual_tokens
    return list(ids)


def untrained(prompt: SoftPrompt, backbone: Backbone, vocabulary: Vocabulary) -> Tensor | None:
    """The prompt as it began, `[P, H]`; None where that is not known."""
    ids = [i for i in initial_ids(prompt, backbone, vocabulary) if i is not None]
    return vocabulary.rows(ids) if len(ids) == prompt.num_virtual_tokens else None
