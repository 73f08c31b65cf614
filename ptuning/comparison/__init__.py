"""Other ways to do the same task, on the same rows: prompting, retrieval, features, prompt tuning, weights.

`protocol` says what a way is, `ways` is the table of all, and each of the modules beside it holds a few. `goals` says
what they are measured by: labels or written texts (`measures` names the scores). `bench` is what all are measured with,
and `identity` what tells one comparison from another. `run` makes every way with every seed (`measuring`; `costs`
measures time and memory), in directories that can be gone on from (`parts`), and adds up (`adding_up`) to `results`;
`recommendation` is the rule, `report` and `page` tell. `loading` brings a way back from its files (`storage`). Knows
nothing of the command line.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.comparison.costs import speed_of as speed_of
    from ptuning.comparison.loading import LoadedWay as LoadedWay
    from ptuning.comparison.loading import load_way as load_way
    from ptuning.comparison.prompting import demonstration as demonstration
    from ptuning.comparison.protocol import Writing as Writing
    from ptuning.comparison.reading import in_turn as in_turn
    from ptuning.comparison.reading import num_tokens as num_tokens
    from ptuning.comparison.report import Comparison as Comparison
    from ptuning.comparison.run import compare as compare
    from ptuning.comparison.text_files import text_of as text_of
    from ptuning.comparison.tuning import quiet_training as quiet_training
    from ptuning.comparison.weights import Weights as Weights

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "costs": ("speed_of",),
        "loading": ("LoadedWay", "load_way"),
        "prompting": ("demonstration",),
        "protocol": ("Writing",),
        "reading": ("in_turn", "num_tokens"),
        "report": ("Comparison",),
        "run": ("compare",),
        "text_files": ("text_of",),
        "tuning": ("quiet_training",),
        "weights": ("Weights",),
    },
)
