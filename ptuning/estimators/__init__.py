"""Fit and predict: a prompt is trained on rows from memory and answers rows, in the manners of scikit-learn.

Thin over `training`, `inference` and `inspection`. Knows nothing of the command line.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.estimators.classifier import PromptClassifier as PromptClassifier
    from ptuning.estimators.generator import PromptGenerator as PromptGenerator

__getattr__, __dir__, __all__ = lazily(
    __name__, {"classifier": ("PromptClassifier",), "generator": ("PromptGenerator",)}
)
