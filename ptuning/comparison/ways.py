"""The table of all ways; a new way is a class and a line here.

Knows nothing of how they are compared.
"""

from collections.abc import Sequence

from ptuning.comparison.documents import Documents
from ptuning.comparison.features import Features, TfIdf
from ptuning.comparison.heads import OutputLayers
from ptuning.comparison.prompting import FewShot, Instruction, ZeroShot
from ptuning.comparison.protocol import Way
from ptuning.comparison.retrieval import RetrievedByHiddenStates, RetrievedByWords
from ptuning.comparison.tuning import ConditionedPrompt, PromptTuning
from ptuning.comparison.weights import AllWeights, LastBlock, LoRA
from ptuning.errors import ConfigError

WAYS: tuple[Way, ...] = (
    ZeroShot(),
    Instruction(),
    FewShot(),
    TfIdf(),
    RetrievedByWords(),
    RetrievedByHiddenStates(),
    Documents(),
    Features(),
    PromptTuning(),
    ConditionedPrompt(),
    OutputLayers(),
    LoRA(),
    LastBlock(),
    AllWeights(),
)
"""All ways, from those that are easiest to build, keep and serve to those that are hardest: among ways that cannot be
told apart, the earlier one is recommended."""
NAMES = tuple(way.name for way in WAYS)


def ways_named(names: Sequence[str] | None) -> list[Way]:
    """The ways of these names in the table's order; None: all.

    Raises:
        ConfigError: For an unknown name.
    """
    unknown = [name for name in names or () if name not in NAMES]
    if unknown:
        raise ConfigError(f"compare.ways: {', '.join(unknown)}", f"some of {', '.join(NAMES)}", "Correct it")
    return [way for way in WAYS if names is None or way.name in names]
