"""A second model over the same weights, so that hooks and settings stay private to one user.

Knows nothing of what those hooks and settings do.
"""

import copy
from typing import Any


def twin_of(model: Any) -> Any:
    """A model whose modules and configuration are copies and whose parameters and buffers are shared."""
    offloading = [
        each._hf_hook for each in model.modules() if hasattr(each, "_hf_hook")
    ]  # accelerate's, with its weights
    shared = [*model.parameters(), *model.buffers(), *offloading]
    return copy.deepcopy(model, {id(each): each for each in shared})
