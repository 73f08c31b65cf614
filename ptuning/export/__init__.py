"""Takes a tuned prompt to other programs: as an array, merged into a copy of its base model, or to a vLLM server.

`write_array` writes the virtual tokens' embeddings; `merge` writes a model directory in which they are rows of the
vocabulary; `MergedPrompts` writes rows for such a model, as text or as ids; `write_vllm` writes what `VLLMClient` needs
to answer rows through a vLLM server that serves the base. Knows nothing of how a prompt was trained.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.export.array import ARRAY_KINDS as ARRAY_KINDS
    from ptuning.export.array import write_array as write_array
    from ptuning.export.merged_card import server_line as server_line
    from ptuning.export.merged_model import merge as merge
    from ptuning.export.merged_prompts import MergedPrompt as MergedPrompt
    from ptuning.export.merged_prompts import MergedPrompts as MergedPrompts
    from ptuning.export.names import load_prompts as load_prompts
    from ptuning.export.vllm.client import UnansweredError as UnansweredError
    from ptuning.export.vllm.client import VLLMClient as VLLMClient
    from ptuning.export.vllm.exported import ExportedPrompts as ExportedPrompts
    from ptuning.export.vllm.writing import write_vllm as write_vllm

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "array": ("ARRAY_KINDS", "write_array"),
        "merged_card": ("server_line",),
        "merged_model": ("merge",),
        "merged_prompts": ("MergedPrompt", "MergedPrompts"),
        "names": ("load_prompts",),
        "vllm.client": ("UnansweredError", "VLLMClient"),
        "vllm.exported": ("ExportedPrompts",),
        "vllm.writing": ("write_vllm",),
    },
)
