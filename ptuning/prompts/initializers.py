"""Chooses the initial embeddings of the virtual tokens: pure functions `(vocabulary_VH, ...) -> start_PH`.

Knows nothing of encoders, tokenizers or models. Names read as phrases: the prompt is initialised `from_vocabulary`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ptuning.errors import PromptError

_COLUMNS = 64  # columns of the vocabulary converted to fp32 at a time
NUM_FREQUENT = 5000  # Lester et al. 2021, section 3.2: the 5,000 most common tokens


def from_vocabulary(
    vocabulary_VH: Tensor, num_virtual_tokens: int, frequent_ids: Sequence[int] | None = None, seed: int = 0
) -> Tensor:
    """Samples the embeddings of frequent tokens (Lester et al. 2021, section 3.2).

    Args:
        vocabulary_VH: Input embeddings of the vocabulary, `[V, H]`.
        num_virtual_tokens: P.
        frequent_ids: The ids to sample from, such as those of `most_frequent`; None or empty: the first 5,000 ids,
            which are the most frequent in byte-pair vocabularies.
        seed: Seed of the sample.

    Returns:
        `[P, H]`, a copy; rows repeat only if P is larger than the number of ids.
    """
    ids = list(frequent_ids or range(min(NUM_FREQUENT, len(vocabulary_VH))))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(ids), generator=generator).tolist()
    return from_ids(vocabulary_VH, [ids[i] for i in order], num_virtual_tokens)


def from_text(vocabulary_VH: Tensor, text_ids: Sequence[int], num_virtual_tokens: int) -> Tensor:
    """Starts from a text's tokens, repeated or cut to P rows: `[P, H]`."""
    if not text_ids:
        raise PromptError("an initial text without tokens", "a text of 1 token or more", "Write prompt.init_text")
    return from_ids(vocabulary_VH, text_ids, num_virtual_tokens)


def from_labels(
    vocabulary_VH: Tensor,
    label_ids: Sequence[Sequence[int]],
    num_virtual_tokens: int,
    frequent_ids: Sequence[int] | None = None,
    seed: int = 0,
) -> Tensor:
    """Starts from the labels' tokens, then from sampled ones (Lester et al. 2021, "class label").

    Args:
        vocabulary_VH: `[V, H]`.
        label_ids: The token ids of each label's text.
        num_virtual_tokens: P.
        frequent_ids: As in `from_vocabulary`, for the rows after the labels' tokens.
        seed: Seed of the sample for those rows.

    Returns:
        `[P, H]`.
    """
    words_NH = from_ids(vocabulary_VH, [i for ids in label_ids for i in ids][:num_virtual_tokens])
    rest_NH = from_vocabulary(vocabulary_VH, num_virtual_tokens - len(words_NH), frequent_ids, seed)
    return torch.cat([words_NH, rest_NH])


def from_prompt(vocabulary_VH: Tensor, prompt_PH: Tensor, num_virtual_tokens: int) -> Tensor:
    """Starts from a tuned prompt of the same shape: `[P, H]`."""
    expected = (num_virtual_tokens, vocabulary_VH.shape[1])
    if tuple(prompt_PH.shape) != expected:
        raise PromptError(
            f"a prompt of shape {list(prompt_PH.shape)} to start from",
            f"{list(expected)}: the template's virtual tokens by the model's width",
            "Change the number of virtual tokens in the template, or start from another prompt",
        )
    return prompt_PH.to(vocabulary_VH.device, torch.float32).clone()


def at_random(vocabulary_VH: Tensor, num_virtual_tokens: int, seed: int = 0) -> Tensor:
    """Gaussian rows with the vocabulary's mean and standard deviation in each dimension: `[P, H]`."""
    generator = torch.Generator().manual_seed(seed)
    noise_PH = torch.randn(num_virtual_tokens, vocabulary_VH.shape[1], generator=generator).to(vocabulary_VH.device)
    mean_H, deviation_H = _moments(vocabulary_VH)
    return mean_H + noise_PH * deviation_H


def deviation(vocabulary_VH: Tensor) -> float:
    """The vocabulary's standard deviation in a typical dimension: the median over dimensions."""
    return float(_moments(vocabulary_VH)[1].median())


def _moments(vocabulary_VH: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each dimension, `[H]` fp32."""
    columns = (part_VC.float() for part_VC in vocabulary_VH.split(_COLUMNS, dim=1))  # no fp32 copy of the whole
    means, deviations = zip(*((part_VC.mean(dim=0), part_VC.std(dim=0)) for part_VC in columns), strict=True)
    return torch.cat(means), torch.cat(deviations)


def from_ids(vocabulary_VH: Tensor, ids: Sequence[int], num_virtual_tokens: int | None = None) -> Tensor:
    """The embeddings of `ids` in fp32, repeated or cut to `num_virtual_tokens` rows if that is given."""
    num_rows = len(ids) if num_virtual_tokens is None else num_virtual_tokens
    index_P = torch.tensor([ids[i % len(ids)] for i in range(num_rows)], dtype=torch.long, device=vocabulary_VH.device)
    return vocabulary_VH[index_P].float().clone()


def most_frequent(token_ids: Iterable[Sequence[int]], excluded: Iterable[int] = ()) -> list[int]:
    """The 5,000 most frequent ids of some rows, most frequent first, without negative ids and `excluded`."""
    excluded = set(excluded)
    counts = Counter(i for ids in token_ids for i in ids if i >= 0 and i not in excluded)
    return [i for i, _ in counts.most_common(NUM_FREQUENT)]


def ids_of(vocabulary_VH: Tensor, start_PH: Tensor) -> list[int | None]:
    """For each row, the lowest vocabulary id whose embedding equals it exactly, or None if there is none."""
    ids: list[int | None] = []
    first_V = vocabulary_VH[:, 0].float()  # one column first: no fp32 copy of the whole
    for row_H in start_PH.to(vocabulary_VH.device, torch.float32):
        candidates = (first_V == row_H[0]).nonzero().flatten()
        equal = candidates[(vocabulary_VH[candidates].float() == row_H).all(dim=1)]
        ids.append(int(equal[0]) if len(equal) else None)
    return ids
