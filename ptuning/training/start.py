"""Where a run's prompt starts: the config's choice among the initialisers.

Knows nothing of encoders or training.
"""

from collections.abc import Sequence

from torch import Tensor

from ptuning.config import RunConfig
from ptuning.data import Coder, Example, text_ids
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt, initializers


def init_kind(config: RunConfig) -> str:
    """What the prompt starts from, auto resolved."""
    if config.prompt.init != "auto":
        return config.prompt.init
    return "labels" if config.data.verbalizer else "vocabulary"


def start_embeddings(config: RunConfig, backbone: Backbone, coder: Coder, examples: Sequence[Example]) -> Tensor:
    """The initial embeddings `[P, H]` that the config asks for."""
    vocabulary_VH, num_virtual_tokens, seed = backbone.vocabulary_VH, coder.task.num_virtual_tokens, config.train.seed

    def frequent() -> list[int]:
        return initializers.most_frequent((example.ids for example in examples), backbone.tokenizer.all_special_ids)

    match init_kind(config):
        case "vocabulary":
            return initializers.from_vocabulary(vocabulary_VH, num_virtual_tokens, frequent(), seed)
        case "text":
            ids = text_ids(backbone.tokenizer, [config.prompt.init_text or ""])[0]
            return initializers.from_text(vocabulary_VH, ids, num_virtual_tokens)
        case "labels":
            return initializers.from_labels(vocabulary_VH, coder.label_ids, num_virtual_tokens, frequent(), seed)
        case "prompt":
            saved = SoftPrompt.from_pretrained(config.prompt.init_prompt or "")
            return initializers.from_prompt(vocabulary_VH, saved.embeddings_PH, num_virtual_tokens)
        case _:
            return initializers.at_random(vocabulary_VH, num_virtual_tokens, seed)
