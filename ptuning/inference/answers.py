"""Writes an answer behind each of many rows, in batches of similar length: what `score_rows` is for texts.

Knows nothing of prompt names, tasks or rows that have not been encoded.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ptuning.data import FEWEST_BATCHES, Example, prefix_ids
from ptuning.forward import Prompt, ReadOptions, as_batch_prompt, memory_explained
from ptuning.inference.generation import write, writing_options
from ptuning.inference.row_text import texts_of
from ptuning.model import Backbone


@torch.no_grad()
def write_rows(
    backbone: Backbone,
    prompt: Prompt,
    examples: Sequence[Example],
    max_new_tokens: int,
    stop_strings: Sequence[str] = (),
    options: ReadOptions = ReadOptions(),
) -> list[str]:
    """Writes greedily behind each row, in the rows' own order; what all rows begin with is run once.

    Args:
        backbone: The frozen model.
        prompt: As in `score_rows`.
        examples: The rows, encoded to be continued.
        max_new_tokens: The most tokens in an answer.
        stop_strings: Texts that end an answer and are left out of it, beside the model's end-of-text tokens.
        options: How rows are read; with the path `splice` nothing is run once for all.

    Raises:
        ModelError: For a model that cannot generate from embeddings.
        OutOfMemoryError: For a batch that does not fit into the device's memory.
    """
    settings = writing_options(backbone, max_new_tokens, stop_strings, {})
    prompt, texts = as_batch_prompt(prompt), dict[int, str]()
    if options.path != "splice":
        prompt = prompt.with_prefix_run(backbone, prefix_ids(examples), len(examples))
    if len(examples) > 1 and not backbone.ignores_left_padding:
        options = replace(options, batch_size=1)
    for places in options.batches(examples, max_new_tokens, FEWEST_BATCHES):  # every step of a batch costs a run
        chosen = [examples[i] for i in places]
        with memory_explained(chosen, max_new_tokens):
            ids_BN = write(backbone, prompt.part(places), chosen, settings)
        texts.update(zip(places, texts_of(backbone, ids_BN, settings), strict=True))
    return [texts[i] for i in range(len(examples))]
