"""Probes: what a base model thinks comes after a few texts, by which a server's model is known to be that base.

Knows nothing of servers or files.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ptuning.data import Example, frame_ids, text_ids
from ptuning.forward import label_logits
from ptuning.model import Backbone

TEXTS = ("The capital of France is", "1, 2, 3, 4,", "Once upon a time there was a")
MOST_DIFFERENCE = 0.5  # nats: rounding and quantized weights stay well below it, other models above
_NUM_LIKELIEST = 8


@dataclass(frozen=True)
class Probe:
    """A text, and the likeliest tokens after it."""

    ids: list[int]
    """The text's ids."""
    log_probs: dict[str, float]
    """Token id, as text -> its log-probability in nats."""


@torch.no_grad()
def probes_of(backbone: Backbone) -> list[Probe]:
    """The probes of a base model."""
    begin, _ = frame_ids(backbone.tokenizer)
    all_ids = [[*begin, *ids] for ids in text_ids(backbone.tokenizer, TEXTS)]
    batch = backbone.collate([Example(ids, [0]) for ids in all_ids]).to(backbone.device)  # the answer does not matter
    none_PH = torch.empty(0, backbone.width, device=backbone.device)
    found = label_logits(backbone, none_PH, batch, "splice").log_softmax(dim=1).topk(_NUM_LIKELIEST, dim=1)
    tops = zip(all_ids, found.indices.tolist(), found.values.tolist(), strict=True)
    return [Probe(ids, dict(zip(map(str, likeliest), own, strict=True))) for ids, likeliest, own in tops]


def difference(probe: Probe, found: Mapping[int, float]) -> float:
    """The mean difference between a probe's log-probabilities and those that were found, in nats."""
    return sum(abs(own - found[int(i)]) for i, own in probe.log_probs.items()) / len(probe.log_probs)
