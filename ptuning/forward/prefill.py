"""Fills a key-value cache with rows up to their last token, so that generation can go on from there.

Knows nothing of losses or of what is generated.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import DynamicCache

from ptuning.data import ApartBatch, Example, moved
from ptuning.forward.batch_prompt import KeptPrompts
from ptuning.forward.shared_prefix import behind_prefixes
from ptuning.model import Backbone, CausalBackbone


def prefixes_apart(prompt: KeptPrompts, examples: Sequence[Example], backbone: Backbone) -> ApartBatch:
    """The rows as a batch whose first columns hold the kept prefixes and the others the rest, each padded on the left.

    Neither part reaches into the columns of the other.
    """
    return ApartBatch(tuple(examples), backbone.pad_id, "left", backbone.device, prefix_lengths=prompt.prefix_lengths)


@torch.no_grad()
def prefilled(backbone: CausalBackbone, prompt: KeptPrompts, batch: ApartBatch) -> DynamicCache:
    """Runs rows up to their last token, packed end to end, and returns a cache with one entry per row.

    Args:
        backbone: A model for which `can_pack` holds.
        prompt: One prompt per row, whose prefixes have been run.
        batch: The rows, as `prefixes_apart` returns them.

    Returns:
        Keys and values of all columns but the last, `B` rows; 0 where a row has padding.
    """
    if batch.num_columns == max(prompt.prefix_lengths) + 1:
        return prompt.spread(backbone)[0]
    rows = [Example(each.ids[:-1], each.ids[-1:]) for each in batch.examples]  # every token before the last is run
    lines, inputs = behind_prefixes(backbone, prompt, dataclasses.replace(batch, examples=rows), is_packed=True)
    with backbone.fast_kernels(lines):
        backbone.fill(**inputs)
    num_kept, width, cache = max(prompt.prefix_lengths), lines.shape.width, backbone.new_cache()
    rows_N, positions_N, lines_N, places_N = lines.tokens()
    ends_B = moved(torch.tensor([len(each.ids) for each in batch.examples]), backbone.device)
    columns_N = batch.num_columns - ends_B[rows_N] + positions_N
    kept, _ = prompt.spread(backbone)
    for i, (line_layer, row_layer) in enumerate(zip(inputs["past_key_values"], kept, strict=True)):
        states = [functional.pad(each, (0, 0, 0, batch.num_columns - 1 - num_kept)) for each in row_layer[:2]]
        for row_states, line_states in zip(states, line_layer[:2], strict=True):
            row_states[rows_N, :, columns_N] = line_states[lines_N, :, places_N - width]
        cache.update(states[0], states[1], i)
    return cache
