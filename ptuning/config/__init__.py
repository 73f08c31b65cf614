"""What a run is told: frozen sections, read from YAML and dotted overrides, every mistake told at once.

`sections` are the settings, `run` is a training run's whole config, `comparison` a comparison's and `distillation` a
distillation's, `reading` reads any such config class, `proposal` writes one for rows that nobody has described. Knows
nothing of models.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.config.comparison import CompareConfig as CompareConfig
    from ptuning.config.comparison import ComparisonConfig as ComparisonConfig
    from ptuning.config.distillation import DistillationConfig as DistillationConfig
    from ptuning.config.distillation import DistillConfig as DistillConfig
    from ptuning.config.proposal import Proposal as Proposal
    from ptuning.config.proposal import stem as stem
    from ptuning.config.reading import defaults as defaults
    from ptuning.config.reading import dotted as dotted
    from ptuning.config.reading import from_settings as from_settings
    from ptuning.config.reading import from_yaml as from_yaml
    from ptuning.config.reading import parser as parser
    from ptuning.config.reading import to_yaml as to_yaml
    from ptuning.config.run import RunConfig as RunConfig
    from ptuning.config.sections import DataConfig as DataConfig
    from ptuning.config.sections import ModelConfig as ModelConfig
    from ptuning.config.sections import PromptConfig as PromptConfig
    from ptuning.config.sections import TrainConfig as TrainConfig

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "comparison": ("CompareConfig", "ComparisonConfig"),
        "distillation": ("DistillConfig", "DistillationConfig"),
        "proposal": ("Proposal", "stem"),
        "reading": ("defaults", "dotted", "from_settings", "from_yaml", "parser", "to_yaml"),
        "run": ("RunConfig",),
        "sections": ("DataConfig", "ModelConfig", "PromptConfig", "TrainConfig"),
    },
)
