"""Distillation: a long text becomes a few virtual tokens.

The `teacher` is the frozen base with the text (`long_text`) in front of each row; what it says is kept (`taught`). The
student starts from the text's own embeddings (`start`) and is trained by the same run as any prompt, with another loss.
`sides` are what is compared in the end, `measuring` measures them through `answer_logits`, `report` tells. `run` puts
these together. Knows nothing of the command line.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.distillation.report import Distillation as Distillation
    from ptuning.distillation.run import distill as distill

__getattr__, __dir__, __all__ = lazily(__name__, {"report": ("Distillation",), "run": ("distill",)})
