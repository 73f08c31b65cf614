"""A second model over the same weights: what is hung on its modules or set in its configuration, no other user sees.

Knows nothing of what is hung on it.
"""

import copy
from typing import Any


def twin_of(model: Any) -> Any:
    """Modules and configuration are copies; parameters and buffers are shared, so that it takes almost no memory."""
    offloading = [
        each._hf_hook for each in model.modules() if hasattr(each, "_hf_hook")
    ]  # accelerate's, with its weights
    shared = [*model.parameters(), *model.buffers(), *offloading]
    return copy.deepcopy(model, {id(each): each for each in shared})
