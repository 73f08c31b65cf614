"""Says what is to blame where scores are not numbers.

Knows nothing of what the scores are for.
"""

import torch
from torch import Tensor

from ptuning.errors import ModelError
from ptuning.model import Backbone


def require_numbers(backbone: Backbone, scores: Tensor) -> Tensor:
    """The scores themselves.

    Args:
        backbone: The model that gave them.
        scores: Logits or log-probabilities.

    Raises:
        ModelError: Where one is NaN, naming the weight or the precision that is to blame.
    """
    if not scores.isnan().any():
        return scores
    for name, weight in backbone.model.named_parameters():
        if (
            weight.is_floating_point()
            and not hasattr(weight, "__tensor_flatten__")
            and not weight.float().isfinite().all()
        ):
            raise ModelError(
                f"model {backbone.name}, whose weight {name} holds NaN or infinity", "a whole model", "Load it again"
            )
    precision = f"{backbone.dtype}".removeprefix("torch.")
    remedy = (
        "Take a prompt or a rate that is smaller"
        if backbone.dtype == torch.float32
        else "Load the model in float32 or bfloat16"
    )
    raise ModelError(f"scores of {backbone.name} that overflow in {precision}", "numbers", remedy)
