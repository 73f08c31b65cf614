"""Student's interval of a mean over few repetitions, such as seeds.

Knows nothing of what is measured.
"""

import math
from collections.abc import Sequence
from statistics import stdev

_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
              2.120, 2.110, 2.101, 2.093)  # fmt: skip
"""97.5 % points of Student's t, from 1 degree of freedom on."""


def half_width(values: Sequence[float]) -> float | None:
    """Half of Student's 95 % interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    return _QUANTILES[min(len(values) - 1, len(_QUANTILES)) - 1] * stdev(values) / math.sqrt(len(values))
