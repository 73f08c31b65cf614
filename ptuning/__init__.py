"""Soft-prompt tuning (P-tuning) in pure PyTorch for frozen Hugging Face language models.

Everything here is loaded when it is first used: importing `ptuning` imports neither torch nor transformers.
"""

import logging
from importlib import metadata
from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning import data as data
    from ptuning import export as export
    from ptuning.comparison import compare as compare
    from ptuning.comparison import load_way as load_way
    from ptuning.config import DistillationConfig as DistillationConfig
    from ptuning.config import RunConfig as RunConfig
    from ptuning.data import Task as Task
    from ptuning.distillation import distill as distill
    from ptuning.errors import PTuningError as PTuningError
    from ptuning.estimators import PromptClassifier as PromptClassifier
    from ptuning.estimators import PromptGenerator as PromptGenerator
    from ptuning.forward import objective as objective
    from ptuning.inference import Ensemble as Ensemble
    from ptuning.inference import PromptedLM as PromptedLM
    from ptuning.inspection import inspect as inspect
    from ptuning.model import Backbone as Backbone
    from ptuning.prompts import SoftPrompt as SoftPrompt
    from ptuning.prompts import encoders as encoders
    from ptuning.prompts import initializers as initializers
    from ptuning.training import train as train

for _name in ("torchao", "torch.utils._pytree"):  # transformers imports torchao, which tells of other machines' kernels
    logging.getLogger(_name).setLevel(logging.ERROR)

__version__ = metadata.version("ptuning")
__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "": ("data", "export"),
        "comparison": ("compare", "load_way"),
        "config": ("DistillationConfig", "RunConfig"),
        "data": ("Task",),
        "distillation": ("distill",),
        "errors": ("PTuningError",),
        "estimators": ("PromptClassifier", "PromptGenerator"),
        "forward": ("objective",),
        "inference": ("Ensemble", "PromptedLM"),
        "inspection": ("inspect",),
        "model": ("Backbone",),
        "prompts": ("SoftPrompt", "encoders", "initializers"),
        "training": ("train",),
    },
)
__all__ += ["__version__"]
