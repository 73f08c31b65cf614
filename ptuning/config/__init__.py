"""What a run is told: frozen sections, read from YAML and dotted overrides, every mistake told at once.

`sections` are the settings, `run` is a whole config, `reading` reads any such config. Knows nothing of models or rows.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.config.run import DataConfig as DataConfig
    from ptuning.config.run import ModelConfig as ModelConfig
    from ptuning.config.run import PromptConfig as PromptConfig
    from ptuning.config.run import RunConfig as RunConfig
    from ptuning.config.run import TrainConfig as TrainConfig
    from ptuning.config.run import defaults as defaults
    from ptuning.config.run import parser as parser

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "run": ("DataConfig", "ModelConfig", "PromptConfig", "RunConfig", "TrainConfig", "defaults", "parser"),
    },
)
