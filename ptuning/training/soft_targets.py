"""A teacher's distributions over the tokens of rows' answers, and how far another model's are from them.

Knows nothing of where a teacher comes from, or of steps.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NEVER = -1e4  # of a log-probability: minus infinity times no probability would be no number


@dataclass(frozen=True)
class SoftTargets:
    """The teacher's most likely tokens at each token of each row's answer: K of them at N positions.

    Their probabilities are the teacher's own; what they lack to 1 belongs to all other tokens together.
    """

    ids_NK: Tensor
    """Token ids, `[N, K]`, of all rows in their order."""
    log_probs_NK: Tensor
    """Their log-probabilities, `[N, K]` fp32, in nats."""
    lengths: tuple[int, ...]
    """The positions of each row, which add up to N."""

    @classmethod
    def of_logits(cls, logits_NV: Tensor, lengths: Sequence[int], num_kept: int) -> "SoftTargets":
        """Keeps the most likely tokens.

        Args:
            logits_NV: The teacher's logits at the rows' answers, `[N, V]`.
            lengths: Answer tokens of each row.
            num_kept: K; at most V are kept.
        """
        top = logits_NV.float().log_softmax(dim=1).topk(min(num_kept, logits_NV.shape[1]), dim=1)
        return cls(top.indices.cpu(), top.values.cpu(), tuple(lengths))

    @classmethod
    def joined(cls, parts: Sequence["SoftTargets"]) -> "SoftTargets":
        """The targets of several lists of rows, one behind the other."""
        ids_NK, log_probs_NK = (
            torch.cat([getattr(each, name) for each in parts]) for name in ("ids_NK", "log_probs_NK")
        )
        return cls(ids_NK, log_probs_NK, tuple(length for each in parts for length in each.lengths))

    def of_rows(self, rows: Sequence[int]) -> "SoftTargets":
        """The targets of some rows, in the order in which they are named."""
        starts = torch.tensor((0, *self.lengths)).cumsum(0).tolist()
        places = torch.tensor([i for row in rows for i in range(starts[row], starts[row + 1])], dtype=torch.long)
        return SoftTargets(self.ids_NK[places], self.log_probs_NK[places], tuple(self.lengths[row] for row in rows))

    def divergences(self, logits_NV: Tensor) -> Tensor:
        """Kullback-Leibler divergence of other distributions from the teacher's, `[N]`, in nats.

        All tokens that were not kept count as one event, so it is at most that of the whole distributions, and equal
        to it where K is V.

        Args:
            logits_NV: Logits at the same positions, `[N, V]`; their gradient is passed on.
        """
        ids_NK, teacher_NK = self.ids_NK.to(logits_NV.device), self.log_probs_NK.to(logits_NV.device)
        log_probs_NV = logits_NV.float().log_softmax(dim=1)
        terms_NK = teacher_NK.exp() * (teacher_NK - log_probs_NV.gather(1, ids_NK))
        if ids_NK.shape[1] == logits_NV.shape[1]:
            return terms_NK.sum(dim=1)
        teacher_rest_N = (1 - teacher_NK.exp().sum(dim=1)).clamp(min=torch.finfo(torch.float32).eps)
        rest_N = log_probs_NV.scatter(1, ids_NK, -torch.inf).logsumexp(dim=1)
        return terms_NK.sum(dim=1) + teacher_rest_N * (teacher_rest_N.log() - rest_N)

    def ending_with(self, token_id: int) -> "SoftTargets":
        """The same, but for the last position of each row, where this token alone is likely."""
        last_R = torch.tensor(self.lengths).cumsum(0) - 1
        num_kept = self.ids_NK.shape[1]
        others = [i for i in range(num_kept) if i != token_id][: num_kept - 1]  # any: they have no probability
        ids_NK, log_probs_NK = self.ids_NK.clone(), self.log_probs_NK.clone()
        ids_NK[last_R] = torch.tensor([token_id, *others])
        log_probs_NK[last_R] = torch.tensor([0.0, *[_NEVER] * len(others)])
        return SoftTargets(ids_NK, log_probs_NK, self.lengths)

    @property
    def sha256(self) -> str:
        """Digest of all numbers."""
        found = hashlib.sha256(repr(self.lengths).encode())
        for each in (self.ids_NK, self.log_probs_NK):
            found.update(each.contiguous().numpy().tobytes())
        return found.hexdigest()
