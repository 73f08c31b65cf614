"""Fills a key-value cache with rows up to their last token, so that generation can go on from there.

Knows nothing of losses or of what is generated.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import DynamicCache

from ptuning.data import IGNORED, Batch, Example, padded
from ptuning.forward.batch_prompt import KeptPrompts
from ptuning.forward.packing import PackedLines
from ptuning.forward.shared_prefix import inputs_behind
from ptuning.model import Backbone, CausalBackbone


def prefixes_apart(prompt: KeptPrompts, examples: Sequence[Example], backbone: Backbone) -> Batch:
    """The rows as a batch whose first columns hold the kept prefixes and the others the rest, each padded on the left.

    Neither part reaches into the columns of the other.
    """
    lengths = prompt.prefix_lengths
    rows = [(each.ids[:length], each.ids[length:]) for each, length in zip(examples, lengths, strict=True)]
    parts = [padded(part, backbone.pad_id, "left") for part in zip(*rows, strict=True)]
    ids_BT, mask_BT = (torch.cat(each, dim=1).to(backbone.device) for each in zip(*parts, strict=True))
    return Batch(ids_BT, mask_BT, torch.full_like(ids_BT, IGNORED), (), ())


@torch.no_grad()
def prefilled(backbone: CausalBackbone, prompt: KeptPrompts, batch: Batch) -> DynamicCache:
    """Runs rows up to their last token, packed end to end, and returns a cache with one entry per row.

    Args:
        backbone: A model for which `can_pack` holds.
        prompt: One prompt per row, whose prefixes have been run.
        batch: The rows, as `prefixes_apart` returns them.

    Returns:
        Keys and values of all columns but the last, `B` rows; 0 where a row has padding.
    """
    if batch.ids_BT.shape[1] == max(prompt.prefix_lengths) + 1:
        return prompt.spread(backbone)[0]
    last_BT = torch.full_like(batch.ids_BT, IGNORED)
    last_BT[:, -1] = 0  # marked as an answer, so that every token before it is run
    lines = PackedLines.of(dataclasses.replace(batch, labels_BT=last_BT), prompt.prefix_lengths, prompt.choice)
    inputs = inputs_behind(backbone, prompt, lines, is_packed=True)
    with backbone.fast_kernels(lines.scored_LW):
        backbone.fill(**inputs)
    num_kept, width, cache = max(prompt.prefix_lengths), lines.ids_LW.shape[1], backbone.new_cache()
    (rows_N, columns_N), (lines_N, places_N) = lines.columns, lines.places
    kept, _ = prompt.spread(backbone)
    for i, (line_layer, row_layer) in enumerate(zip(inputs["past_key_values"], kept, strict=True)):
        states = [functional.pad(each, (0, 0, 0, batch.ids_BT.shape[1] - 1 - num_kept)) for each in row_layer[:2]]
        for row_states, line_states in zip(states, line_layer[:2], strict=True):
            row_states[rows_N, :, columns_N] = line_states[lines_N, :, places_N - width]
        cache.update(states[0], states[1], i)
    return cache
