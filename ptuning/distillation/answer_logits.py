"""Runs rows with answers through the frozen base, and gives the logits at the answers' tokens, a batch at a time.

Knows nothing of teachers or students.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ptuning.data import Example, prefix_ids
from ptuning.forward import Prompt, ReadOptions, as_batch_prompt, label_logits
from ptuning.model import Backbone

_MOST_POSITIONS = 512  # whose logits are held at once: with 50,000 tokens 100 MB


@torch.no_grad()
def answer_logits(
    backbone: Backbone, prompt: Prompt, examples: Sequence[Example], options: ReadOptions
) -> Iterator[tuple[list[int], Tensor]]:
    """The places of some rows and their logits, `[N, V]` in the order of the places, until all rows were read.

    Args:
        backbone: The frozen model.
        prompt: The soft prompt; of no virtual tokens for words alone.
        examples: Rows with answers.
        options: How rows are read.
    """
    longest = max(len(each.answer_ids) for each in examples)
    options = replace(options, batch_size=min(options.batch_size, max(1, _MOST_POSITIONS // longest)))
    kept = as_batch_prompt(prompt).with_prefix_run(backbone, prefix_ids(examples), len(examples))
    for places in options.batches(examples, 0, backbone.overhead_tokens):
        batch = backbone.collate([examples[i] for i in places]).to(backbone.device)
        yield places, label_logits(backbone, kept.part(places), batch, options.path)
