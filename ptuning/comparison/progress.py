"""How long a comparison still takes, from the parts that it has made.

Knows nothing of how parts are made.
"""

from collections.abc import Collection, Mapping, Sequence
from statistics import mean

from ptuning.comparison.parts import Part

BAR = "{desc}: {n_fmt} of {total_fmt} parts {bar} {elapsed}{postfix}"
"""tqdm's bar without its own guess, which takes all parts for equally long."""


def seconds_left(parts: Sequence[Part], seconds: Mapping[Part, float], left_out: Collection[str]) -> float | None:
    """The seconds that parts still take; None before any is made.

    Each takes as long as the parts of its own way did, on average, or where there are none as long as all parts.

    Args:
        parts: The parts that are left.
        seconds: What those took that were made.
        left_out: Ways that are not tried any more.
    """
    if not seconds:
        return None
    by_way = dict[str, list[float]]()
    for part, each in seconds.items():
        by_way.setdefault(part.way, []).append(each)
    usual = mean(seconds.values())
    return sum(mean(by_way.get(part.way, [usual])) for part in parts if part.way not in left_out)


def told(seconds: float | None) -> str:
    """How long that is, in words."""
    if seconds is None:
        return ""
    return f", about {seconds / 60:,.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"
