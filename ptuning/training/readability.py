"""A pull of each virtual token to its nearest token while the prompt learns.

Knows nothing of tasks, optimizers or what the tokens mean.
"""

import torch
from torch import Tensor
from torch.nn import functional

_CHUNK = 8192  # tokens compared at a time


class TokenPull:
    """Adds to a prompt's gradient that of its distance to tokens.

    The distance is the mean over virtual tokens of the squared Euclidean distance to the embedding of the token with
    the highest cosine, in units of that embedding's squared length.

    Args:
        vocabulary_VH: The frozen model's input embeddings.
        weight: What the distance is multiplied by.
    """

    def __init__(self, vocabulary_VH: Tensor, weight: float) -> None:
        self._vocabulary_VH, self._weight = vocabulary_VH, weight

    def distance(self, prompt_PH: Tensor) -> Tensor:
        """The distance, a scalar."""
        near_PH = self._vocabulary_VH[nearest_ids(self._vocabulary_VH, prompt_PH.detach())].float()
        return ((prompt_PH - near_PH).square().sum(dim=1) / near_PH.square().sum(dim=1)).mean()

    def __call__(self, prompt_PH: Tensor) -> Tensor:
        """The same prompt, whose gradient has that of the distance added once the loss has been run backward."""
        pulled_PH = prompt_PH.clone()  # the hook must not stay on a parameter
        pulled_PH.register_hook(lambda gradient_PH: gradient_PH + self._gradient(pulled_PH).to(gradient_PH))
        return pulled_PH

    def _gradient(self, prompt_PH: Tensor) -> Tensor:
        leaf_PH = prompt_PH.detach().float().requires_grad_()
        with torch.enable_grad():
            (gradient_PH,) = torch.autograd.grad(self._weight * self.distance(leaf_PH), leaf_PH)
        return gradient_PH


def nearest_ids(vocabulary_VH: Tensor, prompt_PH: Tensor) -> Tensor:
    """The id of the token with the highest cosine for each virtual token, `[P]`."""
    directions_PH, best_P, ids_P = functional.normalize(prompt_PH.float(), dim=1), None, None
    for i, rows_CH in enumerate(vocabulary_VH.split(_CHUNK)):
        cosine_P, place_P = (directions_PH @ functional.normalize(rows_CH.float(), dim=1).T).max(dim=1)
        place_P = place_P + i * _CHUNK
        if best_P is None or ids_P is None:
            best_P, ids_P = cosine_P, place_P
        else:
            is_better_P = cosine_P > best_P
            best_P, ids_P = torch.maximum(best_P, cosine_P), torch.where(is_better_P, place_P, ids_P)
    assert ids_P is not None
    return ids_P
