"""p-values are what they say: even under each null, rare where there is nothing, small where there is something."""

import pytest
import torch
from synthetic import cloud, drawn, in_order

from ptuning.inspection.measures.nearest_tokens import decode
from ptuning.inspection.vocabulary import neighbours as module
from ptuning.inspection.vocabulary.embeddings import Vocabulary, unit
from ptuning.inspection.vocabulary.neighbours import top
from ptuning.inspection.vocabulary.nulls import DIRECTION, STEP, UNTRAINED, VOCABULARY, Nulls, p_value, q_values

NUM = 400  # virtual tokens of a trial


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return cloud()


def largest_distance(ps: list[float]) -> float:
    """The Kolmogorov-Smirnov statistic: the largest distance between x and the share of p-values up to x."""
    sorted_ = sorted(ps)
    return max(max(abs((i + 1) / len(ps) - p), abs(i / len(ps) - p)) for i, p in enumerate(sorted_))


def from_null(kind: str, vocabulary: Vocabulary) -> tuple[torch.Tensor, list[int | None]]:
    """A prompt drawn from a null, and its initial ids."""
    ids: list[int | None] = torch.randint(len(vocabulary), (NUM,), generator=torch.Generator().manual_seed(7)).tolist()
    start_PH = vocabulary.rows([i or 0 for i in ids])
    if kind == VOCABULARY:
        return vocabulary.random_like(NUM, torch.Generator().manual_seed(8)), [None] * NUM
    if kind == DIRECTION:
        made = Nulls(vocabulary, start_PH, [None] * NUM, NUM, seed=9)
        return torch.stack([made.directions(p)[p] for p in range(NUM)]), [None] * NUM
    if kind == STEP:
        return start_PH + 12.0 * unit(drawn(NUM, vocabulary.width, seed=10)), ids  # so far that most decode to others
    return start_PH, ids


@pytest.mark.parametrize("kind", [VOCABULARY, DIRECTION, STEP, UNTRAINED])
def test_p_is_uniform_under_its_null(vocabulary, kind):
    prompt_PH, ids = from_null(kind, vocabulary)
    ps = [own[kind] for own in Nulls(vocabulary, prompt_PH, ids, 999, seed=1).p_values()]
    assert largest_distance(ps) < 1.63 / NUM**0.5  # the 99 % point


@pytest.mark.parametrize("kind", [VOCABULARY, DIRECTION, STEP])
def test_at_most_5_percent_of_meaningless_tokens_pass(vocabulary, kind):
    prompt_PH, ids = from_null(kind, vocabulary)
    table = decode(prompt_PH, vocabulary, ids, k=1, num_null=199)
    assert sum(table.column("is_init")) < 0.6 * NUM
    assert sum(record["p"] <= 0.05 for record in table) <= at_most_5_percent(NUM)


@pytest.mark.parametrize("kind", [VOCABULARY, DIRECTION, STEP, UNTRAINED])
def test_at_most_5_percent_of_meaningless_prompts_have_a_token_that_passes(vocabulary, kind):
    prompt_PH, ids = from_null(kind, vocabulary)
    size, passed = 5, 0
    for first in range(0, NUM, size):
        own = slice(first, first + size)
        table = decode(prompt_PH[own], vocabulary, ids[own], k=1, num_null=199, seed=first)
        passed += any(record["q"] <= 0.05 for record in table)
    assert passed <= at_most_5_percent(NUM // size)


def at_most_5_percent(num: int) -> float:
    """A count that a rate of 5 % exceeds at most once in 20 trials of so many."""
    return 0.05 * num + 1.64 * (0.05 * 0.95 * num) ** 0.5


def test_real_tokens_are_nearer_than_chance(vocabulary):
    table = decode(vocabulary.rows(list(range(20))), vocabulary, k=1)
    assert table.column("p") == [0.002] * 20
    assert table.column("q") == [0.002] * 20


def test_virtual_token_that_went_to_another_token_is_told_from_one_that_stayed(vocabulary):
    start_PH, goal_PH = vocabulary.rows([1, 2]), vocabulary.rows([11, 12])
    moved_PH = torch.stack([start_PH[0] + 0.9 * (goal_PH[0] - start_PH[0]), start_PH[1] + 0.1 * drawn(32)])
    table = decode(moved_PH, vocabulary, [1, 2], k=1)
    assert table.column("id") == [11, 2]
    assert table.column("is_init") == [False, True]
    assert table[0]["p"] == 0.002
    assert table[1]["p"] == 1.0


def test_a_token_that_did_not_move_is_as_near_as_chance(vocabulary):
    (own,) = Nulls(vocabulary, vocabulary.rows([5]), [5], 99, seed=0).p_values()
    assert own[STEP] == 1.0  # steps of no length
    (along,) = Nulls(vocabulary, vocabulary.mean_H[None], [None], 99, seed=0).p_values()
    assert along[DIRECTION] == 1.0  # nothing is left to draw


def test_what_lies_along_the_mean_but_for_rounding_has_nothing_left_to_draw(vocabulary):
    mean_PH = vocabulary.mean_H * torch.linspace(0.1, 40, 50)[:, None] * (1 + 1e-7 * drawn(50, vocabulary.width))
    made = Nulls(vocabulary, mean_PH, [None] * 50, 99, seed=0)
    for p, own_H in enumerate(unit(mean_PH)):
        assert (unit(made.directions(p)) - own_H).abs().max() < 1e-5


def test_q_is_over_the_whole_prompt(vocabulary):
    prompt_PH = vocabulary.rows([*range(18), 101, 102])
    table = decode(prompt_PH, vocabulary, list(range(20)), k=1)
    assert table.column("q") == [1.0] * 18 + [pytest.approx(0.002 * 20 / 2)] * 2


def test_p_is_told_where_the_token_shown_is_the_one_it_is_of(vocabulary):
    vocabulary = Vocabulary(
        vocabulary.matrix_VH * torch.linspace(0.3, 3, len(vocabulary))[:, None], vocabulary.tokenizer
    )
    prompt_PH = drawn(20, 32) * 3
    for metric in ("cosine", "l2"):
        table = decode(prompt_PH, vocabulary, k=1, metric=metric)
        by_cosine = decode(prompt_PH, vocabulary, k=1).column("id")
        same = [one == other for one, other in zip(table.column("id"), by_cosine, strict=True)]
        assert [p is not None for p in table.column("p")] == same
    assert not all(same)


def test_draws_have_the_kind_that_they_are_of(vocabulary):
    prompt_PH = vocabulary.rows([1, 2, 3]) * 2 + drawn(3, 32)
    made = Nulls(vocabulary, prompt_PH, [5, None, 7], 500, seed=0)
    mean_H = unit(vocabulary.mean_H[None])[0]
    for p, own_H in enumerate(prompt_PH):
        drawn_NH = made.directions(p)
        assert drawn_NH.norm(dim=1).tolist() == pytest.approx([float(own_H.norm())] * 500, rel=1e-4)
        assert (drawn_NH @ mean_H).tolist() == pytest.approx([float(own_H @ mean_H)] * 500, rel=1e-3)
    assert made.steps(1) is None
    for p, i in ((0, 5), (2, 7)):
        start_H = vocabulary.rows([i])[0]
        expected = float((prompt_PH[p] - start_H).norm())
        assert (made.steps(p) - start_H).norm(dim=1).tolist() == pytest.approx([expected] * 500, rel=1e-4)
    assert [set(own) for own in made.p_values()] == [
        {VOCABULARY, DIRECTION, STEP, UNTRAINED},
        {VOCABULARY, DIRECTION},
        {VOCABULARY, DIRECTION, STEP, UNTRAINED},
    ]


def test_chances_are_those_of_the_vectors_themselves(vocabulary):
    """The shared products give the same as comparing each vector with every token."""
    prompt_PH, init_ids = vocabulary.rows([1, 2, 3]) + 1.5 * drawn(3, 32), [1, None, 3]
    made = Nulls(vocabulary, prompt_PH, init_ids, 300, seed=0)
    unit_VH = unit(vocabulary.matrix_VH)
    for p, (found, i) in enumerate(zip(made.p_values(), init_ids, strict=True)):
        kinds = {VOCABULARY: (made.like_vocabulary_NH, None), DIRECTION: (made.directions(p), None)}
        if i is not None:
            kinds[STEP] = (made.steps(p), i)
        cosine_V = unit(prompt_PH[p][None])[0] @ unit_VH.T
        own = max(float(each) for v, each in enumerate(cosine_V) if v != i)
        for kind, (vectors_NH, left_out) in kinds.items():
            cosine_NV = unit(vectors_NH) @ unit_VH.T
            if left_out is not None:
                cosine_NV[:, left_out] = -1
            highest_N = cosine_NV.amax(dim=1)
            least, most = (
                (1 + int((highest_N >= own + each).sum())) / 301 for each in (1e-5, -1e-5)
            )  # but for rounding
            assert least <= found[kind] <= most, kind
            assert most - least < 0.01, kind


def test_random_vectors_have_the_vocabularys_mean_and_covariance(vocabulary):
    drawn_NH = vocabulary.random_like(20000, torch.Generator().manual_seed(0))
    assert (drawn_NH.mean(dim=0) - vocabulary.mean_H).abs().max() < 0.05
    expected_HH = torch.cov(vocabulary.matrix_VH.T)
    assert (torch.cov(drawn_NH.T) - expected_HH).abs().max() < 0.1


def test_planted_hub_is_flagged():
    plain = cloud()
    matrix_VH = plain.matrix_VH.clone()
    matrix_VH[77] = matrix_VH.mean(dim=0)  # in the middle of all directions
    vocabulary = Vocabulary(matrix_VH, plain.tokenizer)
    table = decode(vocabulary.rows([77, 5, 6]), vocabulary, k=1, num_null=999)
    assert table.column("is_hub") == [True, False, False]
    assert table[0]["hub_share"] > 0.01  # of 1,500 tokens


def test_p_counts_draws_that_are_as_high():
    draws_N = torch.tensor([0.1, 0.5, 0.9])
    assert [p_value(own, draws_N) for own in (0.0, 0.5, 0.6, 1.0)] == [1.0, 0.75, 0.5, 0.25]


def test_false_discovery_rates_are_those_of_benjamini_and_hochberg():
    ps = [0.01, 0.04, 0.03, 0.005, 0.8]
    assert q_values(ps) == pytest.approx([0.025, 0.05, 0.05, 0.025, 0.8])
    assert q_values([0.2]) == [0.2]


def test_top_is_that_of_all_pairs(vocabulary, monkeypatch):
    queries_NH = drawn(30, 32, seed=3)
    values_NV = unit(queries_NH) @ unit(vocabulary.matrix_VH).T
    monkeypatch.setattr("ptuning.inspection.vocabulary.embeddings.CHUNK", 100)
    monkeypatch.setattr(module, "_BLOCK", 7)
    values_NK, ids_NK = top(queries_NH, vocabulary, 4)
    assert all(in_order(ids_K, values_V) for ids_K, values_V in zip(ids_NK.tolist(), values_NV, strict=True))
    assert torch.allclose(values_NK, values_NV.topk(4, dim=1).values, atol=1e-6)
