"""Whether prompts of one task decode alike, and more so than prompts of other tasks.

Knows nothing of what prompts do.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from ptuning.errors import PromptError
from ptuning.evaluation import Table
from ptuning.inspection.measures.protocol import Measured
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.inspection.vocabulary.neighbours import top

NAME = "stability"
COLUMNS = {
    "pairs": "same task: prompts of one task; other task: prompts of different tasks",
    "num_pairs": "pairs that were compared",
    "overlap": "mean overlap of the sets of nearest tokens (Jaccard 1901), whatever their positions",
    "least": "the least overlap of a pair",
    "most": "the greatest overlap of a pair",
    "by_position": "mean share of positions with the same nearest token; None where the prompts' lengths differ",
}
HOW = (
    "How far two prompts have the same nearest tokens. Where prompts of the same task overlap no more than prompts of "
    "other tasks, the decoding does not tell tasks apart. Prompts that began at the same tokens overlap for that "
    "reason alone."
)


@torch.no_grad()
def stability(prompts: Mapping[str, Sequence[Tensor]], vocabulary: Vocabulary, k: int = 1) -> Measured:
    """Compares the decodings of prompts.

    Prompts that began at the same tokens, as those of one seed do, overlap for that reason alone: tune each with its
    own seed.

    Args:
        prompts: Task -> the prompts `[P, H]` that were tuned for it.
        vocabulary: The base model's vocabulary.
        k: How many nearest tokens of each virtual token count.

    Returns:
        A table with a record for pairs of the same task and one for pairs of different tasks; `COLUMNS` says what it
        holds.

    Raises:
        PromptError: When there are fewer than two prompts.
    """
    decoded = [
        (task, top(each.to(vocabulary.device), vocabulary, k)[1]) for task, own in prompts.items() for each in own
    ]
    if len(decoded) < 2:
        raise PromptError(f"{len(decoded)} prompts to compare", "two or more", "Give more prompts")
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {"same task": [], "other task": []}
    for (task, one), (other_task, other) in combinations(decoded, 2):
        pairs["same task" if task == other_task else "other task"].append((one, other))
    table = Table(COLUMNS, [_record(name, own) for name, own in pairs.items() if own])
    return Measured(name=NAME, title="Beside other prompts", how=HOW, table=table)


def _record(name: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, object]:
    overlaps = [_overlap(set(one.flatten().tolist()), set(other.flatten().tolist())) for one, other in pairs]
    is_aligned = all(one.shape == other.shape for one, other in pairs)
    same = [float((one[:, 0] == other[:, 0]).float().mean()) for one, other in pairs] if is_aligned else []
    return {
        "pairs": name,
        "num_pairs": len(pairs),
        "overlap": sum(overlaps) / len(overlaps),
        "least": min(overlaps),
        "most": max(overlaps),
        "by_position": sum(same) / len(same) if same else None,
    }


def _overlap(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)
