"""A decoding gives the exact nearest tokens by each metric, and marks those that only echo the start."""

import pytest
import torch
from families import FAMILIES, tiny_backbone
from synthetic import Names, cloud, drawn, in_order

from ptuning.errors import PromptError
from ptuning.inspection.measures.nearest_tokens import COLUMNS, METRICS, decode
from ptuning.inspection.vocabulary.embeddings import Vocabulary, unit
from ptuning.inspection.vocabulary.nulls import Nulls

every_metric = pytest.mark.parametrize("metric", METRICS)


@pytest.mark.parametrize("family", FAMILIES)
def test_real_tokens_decode_to_themselves(family):
    backbone = tiny_backbone(family)
    vocabulary = Vocabulary.of(backbone)
    ids = list(range(len(vocabulary)))
    table = decode(vocabulary.rows(ids), vocabulary, ids, k=1, num_null=3)
    assert table.column("id") == vocabulary.same_V.tolist()
    assert table.column("token") == backbone.tokenizer.batch_decode([[i] for i in vocabulary.same_V.tolist()])
    assert all(table.column("is_init"))
    assert table.column("cosine") == pytest.approx([1.0] * len(ids), abs=1e-5)
    assert table.column("l2") == pytest.approx([0.0] * len(ids), abs=1e-5)


@every_metric
@pytest.mark.parametrize("chunk", [50, 1000])
def test_nearest_tokens_are_those_of_brute_force(monkeypatch, metric, chunk):
    monkeypatch.setattr("ptuning.inspection.vocabulary.embeddings.CHUNK", chunk)
    vocabulary, prompt_PH = cloud(120, 16), drawn(5, 16, seed=1) + 0.8
    table = decode(prompt_PH, vocabulary, k=10, metric=metric, num_null=40)
    own_PH, rows_VH, mean_H = prompt_PH.double(), vocabulary.matrix_VH.double(), vocabulary.matrix_VH.double().mean(0)
    cosine_PV = unit(own_PH) @ unit(rows_VH).T
    values = {
        "cosine": cosine_PV,
        "centred_cosine": unit(own_PH - mean_H) @ unit(rows_VH - mean_H).T,
        "l2": torch.cdist(own_PH, rows_VH, compute_mode="donot_use_mm_for_euclid_dist"),
    }
    if metric != "csls":
        ids = table.column("id")
        for p, values_V in enumerate(values[metric]):
            assert in_order(ids[10 * p : 10 * p + 10], values_V, descending=metric != "l2")
    for record in table:
        for name, values_PV in values.items():
            assert record[name] == pytest.approx(float(values_PV[record["position"], record["id"]]), abs=1e-4)


def test_csls_is_that_of_its_definition():
    """Conneau et al. 2018, equation 4, with vectors like the prompt's own in place of the other language."""
    vocabulary, prompt_PH = cloud(120, 16), drawn(5, 16, seed=1) + 0.8
    table = decode(prompt_PH, vocabulary, k=120, metric="csls", num_null=499)
    nulls = Nulls(vocabulary, prompt_PH, [None] * 5, 499, seed=0)
    references_RH = torch.cat([nulls.directions(p, range(p * 102, (p + 1) * 102)) for p in range(5)])
    assert torch.linalg.matrix_rank(references_RH) == 16
    cosine_PV = unit(prompt_PH) @ unit(vocabulary.matrix_VH).T
    own_P = cosine_PV.topk(10, dim=1).values.mean(dim=1)
    crowd_V = (unit(references_RH) @ unit(vocabulary.matrix_VH).T).topk(10, dim=0).values.mean(dim=0)
    expected_PV = 2 * cosine_PV - own_P[:, None] - crowd_V
    assert all(in_order(table.column("id")[120 * p : 120 * p + 120], expected_PV[p]) for p in range(5))
    for record in table:
        assert record["csls"] == pytest.approx(float(expected_PV[record["position"], record["id"]]), abs=1e-5)


def test_csls_takes_off_how_crowded_a_token_is():
    """Of two tokens that are equally near, CSLS prefers the one that few random vectors are near to."""
    vocabulary = cloud(400, 16)
    table = decode(drawn(4, 16, seed=1) + 0.8, vocabulary, k=400, metric="csls", num_null=99)
    hubs = [record for record in table if record["hub_share"] > 0.02]
    assert len(hubs) > 4
    taken = [2 * record["cosine"] - record["csls"] for record in table]
    taken_of_hubs = [2 * record["cosine"] - record["csls"] for record in hubs]
    assert sum(taken_of_hubs) / len(hubs) > sum(taken) / len(table)


def test_of_equal_tokens_the_lowest_id_is_told():
    matrix_VH = drawn(50, 8)
    matrix_VH[[25, 30]] = matrix_VH[7].clone()
    table = decode(matrix_VH[[30]], Vocabulary(matrix_VH, Names()), [25], k=2, num_null=9)
    assert table.column("id")[0] == 7
    assert table.column("is_init") == [True, False]
    assert table[0]["flags"] == ["duplicate"]
    assert table.column("id")[1] not in (7, 25, 30)


def test_walk_from_one_token_to_another_flips_at_the_bisector():
    matrix_VH = torch.cat([drawn(2, 64) * torch.tensor([[1.0], [3.0]]), drawn(300, 64, seed=1) * 10])
    vocabulary = Vocabulary(matrix_VH, Names())
    one_H, other_H = matrix_VH[0], matrix_VH[1]
    by_angle = float(one_H.norm() / (one_H.norm() + other_H.norm()))
    for metric, flip in (("cosine", by_angle), ("l2", 0.5)):
        for step, expected in ((flip - 0.01, 0), (flip + 0.01, 1)):
            at_H = (1 - step) * one_H + step * other_H
            table = decode(at_H[None], vocabulary, k=1, metric=metric, num_null=3)
            assert table.column("id") == [expected], (metric, step)


def test_metrics_that_agree_are_counted():
    matrix_VH = torch.tensor([[10.0, 0.0], [1.0, 1.0], [-1.0, 0.5], [0.0, -3.0]])
    table = decode(torch.tensor([[1.0, 0.0]]), Vocabulary(matrix_VH, Names()), k=2, num_null=9)
    (first, second) = table
    assert (first["id"], second["id"]) == (0, 1)
    vocabulary = Vocabulary(matrix_VH, Names())
    nearest = [
        decode(torch.tensor([[1.0, 0.0]]), vocabulary, k=1, metric=each, num_null=9)[0]["id"] for each in METRICS
    ]
    assert nearest[METRICS.index("l2")] == 1
    assert [each["metrics_agree"] for each in (first, second)] == [nearest.count(0), nearest.count(1)]


def test_prompt_that_started_at_no_token_has_no_initial_tokens():
    vocabulary = cloud(100, 8)
    for init in (None, [None, None]):
        table = decode(vocabulary.rows([5, 6]), vocabulary, init, k=1, num_null=9)
        assert table.column("init_token") == [None, None]
        assert table.column("is_init") == [False, False]


def test_records_have_the_documented_columns_and_a_frame():
    table = decode(cloud().rows([1, 2]), cloud(), [1, None], k=3, num_null=9)
    assert len(table) == 6
    assert all(list(record) == list(COLUMNS) for record in table)
    assert table.frame().shape == (6, len(COLUMNS))
    assert [record["p"] is None for record in table] == [False, True, True] * 2


@pytest.mark.parametrize("k", [0, -1, 101])
def test_impossible_number_of_neighbours_is_refused(k):
    with pytest.raises(PromptError, match=f"k={k} neighbours; expected from 1 to 100"):
        decode(cloud(100, 8).rows([5]), cloud(100, 8), k=k)


def test_prompt_of_another_width_is_refused():
    with pytest.raises(PromptError, match="a prompt of width 16; expected the base's width 8"):
        decode(drawn(4, 16), cloud(100, 8))


@pytest.mark.real_model
def test_dot_product_does_not_decode_real_tokens_and_cosine_does(real_backbone):
    vocabulary = Vocabulary.of(real_backbone)
    ids = torch.randperm(len(vocabulary), generator=torch.Generator().manual_seed(0))[:400]
    rows_NH = vocabulary.matrix_VH[ids]
    by_dot_N = (rows_NH @ vocabulary.matrix_VH.T).argmax(dim=1)
    assert 0.05 < float((by_dot_N == ids).float().mean()) < 0.15  # 0.10 of all, as was recorded
    table = decode(rows_NH, vocabulary, k=1, num_null=3)
    found_NH, own_NH = (unit(each.double()) for each in (vocabulary.rows(table.column("id")), rows_NH))
    assert ((found_NH * own_NH).sum(dim=1) > 1 - 1e-6).all()  # itself, or one that only rounding tells apart
