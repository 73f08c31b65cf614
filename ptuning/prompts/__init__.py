"""The trainable prompt encoders, their initial values, and the saved prompt.

`encoders` compute the virtual tokens' embeddings, `initializers` choose their initial values, `soft_prompt` is the
tuned prompt, `storage` reads and writes its directory, and `hub` fetches and uploads it. Knows nothing of how a
model is run.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.prompts import encoders as encoders
    from ptuning.prompts import initializers as initializers
    from ptuning.prompts.encoders import PromptEncoder as PromptEncoder
    from ptuning.prompts.model_card import base_lines as base_lines
    from ptuning.prompts.model_card import code as code
    from ptuning.prompts.model_card import front_matter as front_matter
    from ptuning.prompts.model_card import results_table as results_table
    from ptuning.prompts.model_card import sections_text as sections_text
    from ptuning.prompts.model_card import task_lines as task_lines
    from ptuning.prompts.schema import Result as Result
    from ptuning.prompts.soft_prompt import SoftPrompt as SoftPrompt
    from ptuning.prompts.storage import Summary as Summary
    from ptuning.prompts.storage import is_prompt_directory as is_prompt_directory
    from ptuning.prompts.storage import prompt_directory as prompt_directory

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "": ("encoders", "initializers"),
        "encoders": ("PromptEncoder",),
        "model_card": ("base_lines", "code", "front_matter", "results_table", "sections_text", "task_lines"),
        "schema": ("Result",),
        "soft_prompt": ("SoftPrompt",),
        "storage": ("Summary", "is_prompt_directory", "prompt_directory"),
    },
)
