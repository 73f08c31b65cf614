"""Answers rows with a frozen model and named prompts: classifies, scores, generates, streams and converses.

Knows nothing of training.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.inference.answers import write_rows as write_rows
    from ptuning.inference.ensemble import Classification as Classification
    from ptuning.inference.ensemble import Ensemble as Ensemble
    from ptuning.inference.prompt_library import PromptLibrary as PromptLibrary
    from ptuning.inference.prompt_library import as_prompt as as_prompt
    from ptuning.inference.prompt_library import base_revision as base_revision
    from ptuning.inference.prompted_lm import PromptedLM as PromptedLM
    from ptuning.inference.row_text import MAX_NEW_TOKENS as MAX_NEW_TOKENS
    from ptuning.inference.row_text import RowText as RowText
    from ptuning.inference.row_text import require_limits as require_limits
    from ptuning.inference.streaming import Piece as Piece

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "answers": ("write_rows",),
        "ensemble": ("Classification", "Ensemble"),
        "prompt_library": ("PromptLibrary", "as_prompt", "base_revision"),
        "prompted_lm": ("PromptedLM",),
        "row_text": ("MAX_NEW_TOKENS", "RowText", "require_limits"),
        "streaming": ("Piece",),
    },
)
