"""Computes the log-probability of each row's candidate answers, all read after one run of the row.

Knows nothing of what the answers mean.
"""

from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ptuning.data import Batch, Example, added
from ptuning.forward.batch_prompt import KeptPrompts
from ptuning.forward.placement import place
from ptuning.forward.prefill import prefilled, prefixes_apart
from ptuning.model import CausalBackbone

_TOKENS_AT_ONCE = 512  # answer tokens of all rows together; it limits the memory that their logits take

Answers = Sequence[Sequence[int]]


@torch.no_grad()
def candidate_log_probs(
    backbone: CausalBackbone, prompt: KeptPrompts, examples: Sequence[Example], answers: Sequence[Answers]
) -> Tensor:
    """Log-probability of every answer after every row.

    Args:
        backbone: A model for which `forward.can_pack` holds.
        prompt: One prompt per row, whose prefixes have been run.
        examples: The rows; their own answers are ignored.
        answers: For each row, the token ids of its candidate answers. C is the largest number of candidates of a row.

    Returns:
        `[B, C]` fp32, in nats; -inf where a row has fewer answers.
    """
    rows = prefixes_apart(prompt, examples, backbone)
    cache = prefilled(backbone, prompt, rows)
    log_probs = [[-torch.inf] * max(map(len, answers)) for _ in answers]
    for chosen in _chunks(answers):
        tails = _Tails([[answers[b][c] for c in chosen if c < len(answers[b])] for b in range(len(answers))], rows)
        with backbone.fast_kernels():
            logits_NV = backbone.scored_logits(
                tails.owner_BW >= 0,
                inputs_embeds=place(backbone, prompt.rows_embeddings, tails.ids_BW),
                attention_mask=tails.blocks(backbone.dtype),
                position_ids=tails.positions_BW,
                past_key_values=cache,
                use_cache=True,
            )
        cache.crop(-tails.ids_BW.shape[1])
        for b, found in enumerate(tails.log_probs(logits_NV)):
            for c, log_prob in zip((c for c in chosen if c < len(answers[b])), found, strict=True):
                log_probs[b][c] = log_prob
    return torch.tensor(log_probs, device=backbone.device)


def max_tail_tokens(answers: Sequence[Answers]) -> int:
    """The most tokens that one forward pass reads for a row: its last token and some of its answers."""
    longest = max(len(answer) for own in answers for answer in own)
    return 1 + max(longest, _TOKENS_AT_ONCE // len(answers))


def _chunks(answers: Sequence[Answers]) -> Iterator[list[int]]:
    """Splits the answers' indices into chunks, each read in one forward pass."""
    chunk: list[int] = []
    num_tokens, limit = 0, max_tail_tokens(answers)
    for c in range(max(map(len, answers))):
        longest = max(len(own[c]) for own in answers if c < len(own))
        if chunk and num_tokens + longest >= limit:
            yield chunk
            chunk, num_tokens = [], 0
        chunk.append(c)
        num_tokens += longest
    yield chunk


class _Tails:
    """The last token of each row, then its answers side by side: `[B, W]`. Answers do not see each other."""

    def __init__(self, answers: Sequence[Answers], rows: Batch) -> None:
        self._answers, device = answers, rows.ids_BT.device
        self._before_BT = rows.mask_BT[:, :-1] > 0
        last, num_before = rows.ids_BT[:, -1].tolist(), self._before_BT.sum(dim=1).tolist()
        ids, owners, positions = [], [], []
        for own, token, before in zip(answers, last, num_before, strict=True):
            tails = [(i, c, before + 1 + j) for c, answer in enumerate(own) for j, i in enumerate(answer[:-1])]
            ids.append([token, *(i for i, _, _ in tails)])
            owners.append([len(own), *(c for _, c, _ in tails)])  # the last token is in no answer: all see it
            positions.append([before, *(position for _, _, position in tails)])

        def padded(rows: list[list[int]], fill: int) -> Tensor:
            return pad_sequence([torch.tensor(row) for row in rows], True, fill).to(device)

        self.ids_BW, self.owner_BW, self.positions_BW = padded(ids, 0), padded(owners, -1), padded(positions, 0)

    def blocks(self, dtype: torch.dtype) -> Tensor:
        """Additive attention mask, `[B, 1, W, T - 1 + W]`."""
        owner_BW, width = self.owner_BW, self.owner_BW.shape[1]
        is_own_BWW = rearrange(owner_BW, "b w -> b w 1") == rearrange(owner_BW, "b w -> b 1 w")
        is_own_BWW[:, :, 0] = True  # the row's last token
        sees_BWW = is_own_BWW & torch.ones_like(is_own_BWW[0]).tril()
        before_BWT = rearrange(self._before_BT, "b t -> b 1 t").expand(-1, width, -1)
        sees_B1WK = rearrange(torch.cat([before_BWT, sees_BWW], dim=2), "b w k -> b 1 w k")
        return added(sees_B1WK, dtype)

    def log_probs(self, logits_NV: Tensor) -> list[list[float]]:
        """The log-probabilities of each row's answers, from the logits at all its tokens."""
        places: list[int] = []
        targets: list[int] = []
        owners: list[tuple[int, int]] = []
        first = 0
        for b, own in enumerate(self._answers):
            at = first + 1
            for c, answer in enumerate(own):
                places += [first, *range(at, at + len(answer) - 1)]
                targets += answer
                owners += [(b, c)] * len(answer)
                at += len(answer) - 1
            first = at
        token_log_probs = (logits_NV[places, targets] - logits_NV.logsumexp(dim=1)[places]).tolist()
        sums = [[0.0] * len(own) for own in self._answers]
        for (b, c), log_prob in zip(owners, token_log_probs, strict=True):
            sums[b][c] += log_prob
        return sums
