"""Keys and values of rows up to their last token, from which the rows can be continued.

Knows nothing of losses or of what is written.
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
    """The rows with their prefixes, which have been run, in columns of their own, and both parts padded in front."""
    rows = [(each.ids[:num], each.ids[num:]) for each, num in zip(examples, prompt.prefix_lengths, strict=True)]
    parts = [padded(part, backbone.pad_id, "left") for part in zip(*rows, strict=True)]
    ids_BT, mask_BT = (torch.cat(each, dim=1).to(backbone.device) for each in zip(*parts, strict=True))
    return Batch(ids_BT, mask_BT, torch.full_like(ids_BT, IGNORED), (), ())


@torch.no_grad()
def prefilled(backbone: CausalBackbone, prompt: KeptPrompts, batch: Batch) -> DynamicCache:
    """Runs rows up to their last token, end to end, and gives each its own keys and values.

    Args:
        backbone: A model for which `can_pack` holds.
        prompt: Each row's, which has been run.
        batch: The rows, what has been run in columns of its own, both parts padded in front.

    Returns:
        Keys and values of all columns but the last, `B` rows; 0 where a row has no token.
    """
    if batch.ids_BT.shape[1] == max(prompt.prefix_lengths) + 1:
        return prompt.spread(backbone)[0]
    last_BT = torch.full_like(batch.ids_BT, IGNORED)
    last_BT[:, -1] = 0  # as if it were to be predicted: what comes before it is run
    lines = PackedLines.of(dataclasses.replace(batch, labels_BT=last_BT), prompt.prefix_lengths, prompt.choice)
    inputs = inputs_behind(backbone, prompt, lines, packs=True)
    with backbone.fast_kernels(lines.scored_LW):
        backbone.fill(**inputs)
    num_kept, width, cache = max(prompt.prefix_lengths), lines.ids_LW.shape[1], backbone.new_cache()
    (rows_N, columns_N), (lines_N, at_N) = lines.columns, lines.places
    kept, _ = prompt.spread(backbone)
    for i, (of_lines, of_rows) in enumerate(zip(inputs["past_key_values"], kept, strict=True)):
        states = [functional.pad(each, (0, 0, 0, batch.ids_BT.shape[1] - 1 - num_kept)) for each in of_rows[:2]]
        for own, line_states in zip(states, of_lines[:2], strict=True):
            own[rows_N, :, columns_N] = line_states[lines_N, :, at_N - width]
        cache.update(states[0], states[1], i)
    return cache
