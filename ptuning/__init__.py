"""Soft-prompt tuning (P-tuning) in pure PyTorch for frozen Hugging Face language models.

Everything here is loaded when it is first used: importing `ptuning` imports neither torch nor transformers.
"""

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptuning.config.run import RunConfig as RunConfig
    from ptuning.data.task import Task as Task
    from ptuning.errors import PTuningError as PTuningError
    from ptuning.inference.ensemble import Ensemble as Ensemble
    from ptuning.inference.prompted_lm import PromptedLM as PromptedLM
    from ptuning.inspection.report import inspect as inspect
    from ptuning.model.backbone import Backbone as Backbone
    from ptuning.prompts.soft_prompt import SoftPrompt as SoftPrompt
    from ptuning.training.run import train as train

    from . import data as data
    from .forward import objective as objective
    from .prompts import encoders as encoders
    from .prompts import initializers as initializers

__version__ = metadata.version("ptuning")

_MODULES = {
    "data": "data",
    "encoders": "prompts.encoders",
    "initializers": "prompts.initializers",
    "objective": "forward.objective",
}
_NAMES = {
    "Backbone": "model.backbone",
    "Ensemble": "inference.ensemble",
    "PTuningError": "errors",
    "PromptedLM": "inference.prompted_lm",
    "RunConfig": "config.run",
    "SoftPrompt": "prompts.soft_prompt",
    "Task": "data.template",
    "inspect": "inspection.report",
    "train": "training.run",
}
__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ptuning.{_MODULES[name]}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"ptuning.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'ptuning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
