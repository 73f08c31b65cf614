"""Where the virtual tokens start is what the name says, row by row."""

import pytest
import torch

from ptuning.errors import PromptError
from ptuning.prompts import initializers
from ptuning.prompts.initializers import (
    at_random,
    from_ids,
    from_labels,
    from_prompt,
    from_text,
    from_vocabulary,
    ids_of,
)


@pytest.fixture
def vocabulary_VH():
    """Forty distinct rows."""
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


def test_from_vocabulary_takes_distinct_frequent_tokens(vocabulary_VH):
    frequent = [3, 5, 8, 13, 21, 34]
    ids = ids_of(vocabulary_VH, from_vocabulary(vocabulary_VH, 5, frequent))
    assert len(set(ids)) == 5
    assert set(ids) < set(frequent)


def test_from_vocabulary_depends_on_its_seed_alone(vocabulary_VH):
    torch.manual_seed(0)
    first_PH = from_vocabulary(vocabulary_VH, 10, seed=3)
    torch.manual_seed(1)
    assert torch.equal(from_vocabulary(vocabulary_VH, 10, seed=3), first_PH)
    assert not torch.equal(from_vocabulary(vocabulary_VH, 10, seed=4), first_PH)


def test_from_vocabulary_repeats_only_where_ids_are_too_few(vocabulary_VH):
    ids = ids_of(vocabulary_VH, from_vocabulary(vocabulary_VH, 5, [7, 9]))
    assert ids[:2] == ids[2:4]
    assert set(ids) == {7, 9}


@pytest.mark.parametrize("frequent", [None, []])
def test_from_vocabulary_without_frequent_ids_takes_the_first_5000(frequent):
    numbered_VH = torch.arange(6000.0)[:, None].repeat(1, 2)
    ids = ids_of(numbered_VH, from_vocabulary(numbered_VH, 5000, frequent))
    assert sorted(ids) == list(range(5000))
    assert ids != list(range(5000))


def test_start_is_a_copy_in_fp32(vocabulary_VH):
    half_VH = vocabulary_VH.bfloat16()
    start_PH = from_ids(half_VH, [1, 2])
    assert start_PH.dtype == torch.float32
    assert torch.equal(start_PH, half_VH[1:3].float())
    whole_VH = vocabulary_VH.clone()
    from_vocabulary(whole_VH, 4).zero_()
    assert torch.equal(whole_VH, vocabulary_VH)


@pytest.mark.parametrize(("num_virtual_tokens", "ids"), [(2, [4, 5]), (3, [4, 5, 6]), (7, [4, 5, 6, 4, 5, 6, 4])])
def test_from_text_repeats_or_cuts_the_text(vocabulary_VH, num_virtual_tokens, ids):
    assert ids_of(vocabulary_VH, from_text(vocabulary_VH, [4, 5, 6], num_virtual_tokens)) == ids


def test_from_text_refuses_a_text_without_tokens(vocabulary_VH):
    with pytest.raises(PromptError, match=r"an initial text without tokens; .* Write prompt.init_text"):
        from_text(vocabulary_VH, [], 3)


def test_from_labels_takes_the_labels_first_and_then_frequent_tokens(vocabulary_VH):
    ids = ids_of(vocabulary_VH, from_labels(vocabulary_VH, [[30], [31, 32]], 6, frequent_ids=[1, 2, 3, 4]))
    assert ids[:3] == [30, 31, 32]
    assert len(set(ids[3:])) == 3
    assert set(ids[3:]) < {1, 2, 3, 4}


@pytest.mark.parametrize("num_virtual_tokens", [2, 3])
def test_from_labels_of_more_tokens_than_the_prompt_is_cut(vocabulary_VH, num_virtual_tokens):
    start_PH = from_labels(vocabulary_VH, [[30], [31, 32]], num_virtual_tokens, frequent_ids=[1])
    assert ids_of(vocabulary_VH, start_PH) == [30, 31, 32][:num_virtual_tokens]


def test_from_prompt_is_that_prompt_and_not_the_same_memory(vocabulary_VH):
    tuned_PH = torch.ones(4, 6)
    start_PH = from_prompt(vocabulary_VH, tuned_PH, 4)
    assert torch.equal(start_PH, tuned_PH)
    start_PH.zero_()
    assert torch.equal(tuned_PH, torch.ones(4, 6))


@pytest.mark.parametrize("shape", [(3, 6), (4, 5)])
def test_from_prompt_of_another_shape_is_refused(vocabulary_VH, shape):
    with pytest.raises(
        PromptError, match=rf"a prompt of shape \[{shape[0]}, {shape[1]}\] to start from; expected \[4, 6\]"
    ):
        from_prompt(vocabulary_VH, torch.ones(shape), 4)


def test_at_random_has_the_vocabularys_mean_and_spread_in_each_dimension():
    num_rows = 20_000
    scale_H, shift_H = torch.tensor([0.01, 1.0, 30.0]), torch.tensor([5.0, -2.0, 0.0])
    vocabulary_VH = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * scale_H + shift_H
    start_PH = at_random(vocabulary_VH, num_rows)
    mean_H, std_H = vocabulary_VH.mean(dim=0), vocabulary_VH.std(dim=0)
    assert ((start_PH.mean(dim=0) - mean_H).abs() < 5 * std_H / num_rows**0.5).all()
    assert (start_PH.std(dim=0) / std_H - 1).abs().max() < 0.03
    assert start_PH.T.corrcoef().fill_diagonal_(0).abs().max() < 0.04
    assert len(start_PH.unique(dim=0)) == num_rows


def test_at_random_depends_on_its_seed_alone(vocabulary_VH):
    torch.manual_seed(0)
    first_PH = at_random(vocabulary_VH, 4, seed=3)
    torch.manual_seed(1)
    assert torch.equal(at_random(vocabulary_VH, 4, seed=3), first_PH)
    assert not torch.equal(at_random(vocabulary_VH, 4, seed=4), first_PH)


def test_most_frequent_counts_tokens_but_no_virtual_or_special_ones():
    rows = [[-1, -2, 0, 7, 7, 9], [-1, -2, 0, 7, 9, 4]]
    assert initializers.most_frequent(rows, excluded=[0]) == [7, 9, 4]
    assert initializers.most_frequent(rows) == [7, 0, 9, 4]


def test_most_frequent_keeps_5000():
    rows = [list(range(6000)), list(range(3000, 6000))]
    assert set(initializers.most_frequent(rows)) == {*range(3000, 6000), *range(2000)}


def test_ids_of_finds_rows_that_are_tokens(vocabulary_VH):
    vocabulary_VH[30] = vocabulary_VH[10]  # a duplicate: the lower id is given
    vocabulary_VH[31] = vocabulary_VH[12]
    vocabulary_VH[31, 5] += 1  # agrees in all dimensions but one
    near_H = vocabulary_VH[3] + torch.tensor([0.0, 0, 0, 0, 0, 1e-6])
    start_PH = torch.stack([vocabulary_VH[39], near_H, vocabulary_VH[30], vocabulary_VH[31], vocabulary_VH[0]])
    assert ids_of(vocabulary_VH, start_PH) == [39, None, 10, 31, 0]
