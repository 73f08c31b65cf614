"""Turns a prompt and rows into label logits, by the reference path (`splice`) or a fast one.

All paths agree. `objective` turns the logits into losses and log-probabilities. Knows nothing of encoders, training
or what labels mean.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.forward import objective as objective
    from ptuning.forward.batch_prompt import BatchPrompt as BatchPrompt
    from ptuning.forward.batch_prompt import KeptPrompts as KeptPrompts
    from ptuning.forward.batch_prompt import Prompt as Prompt
    from ptuning.forward.batch_prompt import TensorPrompt as TensorPrompt
    from ptuning.forward.batch_prompt import as_batch_prompt as as_batch_prompt
    from ptuning.forward.line_pass import loss_and_gradient as loss_and_gradient
    from ptuning.forward.lines import Lines as Lines
    from ptuning.forward.memory import memory_explained as memory_explained
    from ptuning.forward.numbers import require_numbers as require_numbers
    from ptuning.forward.objective import answer_log_probs as answer_log_probs
    from ptuning.forward.objective import label_log_probs as label_log_probs
    from ptuning.forward.objective import loss as loss
    from ptuning.forward.objective import loss_sum as loss_sum
    from ptuning.forward.paths import label_logits as label_logits
    from ptuning.forward.paths import lines_for as lines_for
    from ptuning.forward.paths import require_path as require_path
    from ptuning.forward.placement import place as place
    from ptuning.forward.prefill import prefilled as prefilled
    from ptuning.forward.prefill import prefixes_apart as prefixes_apart
    from ptuning.forward.prefix_cache import Prefix as Prefix
    from ptuning.forward.read_options import ReadOptions as ReadOptions
    from ptuning.forward.shared_prefix import can_pack as can_pack

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "": ("objective",),
        "batch_prompt": ("BatchPrompt", "KeptPrompts", "Prompt", "TensorPrompt", "as_batch_prompt"),
        "line_pass": ("loss_and_gradient",),
        "lines": ("Lines",),
        "memory": ("memory_explained",),
        "numbers": ("require_numbers",),
        "objective": ("answer_log_probs", "label_log_probs", "loss", "loss_sum"),
        "paths": ("label_logits", "lines_for", "require_path"),
        "placement": ("place",),
        "prefill": ("prefilled", "prefixes_apart"),
        "prefix_cache": ("Prefix",),
        "read_options": ("ReadOptions",),
        "shared_prefix": ("can_pack",),
    },
)
