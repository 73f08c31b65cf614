"""Norms, neighbourhoods and ranks are those of their definitions."""

import pytest
import torch
from synthetic import Names, cloud, drawn

from ptuning.inspection.measures.geometry import effective_rank, geometry
from ptuning.inspection.vocabulary.embeddings import Vocabulary


def test_distances_leave_the_token_itself_out():
    vocabulary = cloud(200, 8)
    found = geometry(vocabulary.rows([3, 4]) + 0.01, vocabulary, [3, None])
    distances_VV = torch.cdist(vocabulary.matrix_VH, vocabulary.matrix_VH)
    own_V = distances_VV.topk(11, dim=1, largest=False).values[:, 1:].mean(dim=1)
    (first, second) = found.table
    expected = float((own_V < own_V[3]).float().mean()) * 100
    assert first["init_distance_percentile"] == pytest.approx(expected, abs=0.6)
    assert second["init_distance_percentile"] is None
    away_V = torch.cdist(vocabulary.rows([3, 4]) + 0.01, vocabulary.matrix_VH)
    nearest_PK = away_V.topk(11, largest=False, dim=1).values
    assert first["distance"] == pytest.approx(float(nearest_PK[0, 1:].mean()), abs=1e-3)  # its start is left out
    assert second["distance"] == pytest.approx(float(nearest_PK[1, :10].mean()), abs=1e-3)
    assert first["moved"] == pytest.approx(0.01 * 8**0.5, rel=1e-3)
    assert second["moved"] is None


def test_norms_are_told_beside_the_vocabularys():
    matrix_VH = torch.nn.functional.normalize(drawn(338, 16), dim=1) * torch.arange(1.0, 339)[:, None]
    unit_H = torch.nn.functional.one_hot(torch.tensor(0), 16).float()
    found = geometry(torch.tensor([0.5, 169.5, 400.0])[:, None] * unit_H, Vocabulary(matrix_VH, Names()))
    assert found.table.column("norm") == pytest.approx([0.5, 169.5, 400.0])
    assert found.table.column("norm_percentile") == pytest.approx([0.0, 50.0, 100.0])
    assert found.vocabulary_norms == pytest.approx({"5": 17.85, "50": 169.5, "95": 321.15}, abs=1e-2)


def test_effective_rank_counts_directions():
    assert effective_rank(torch.eye(6)) == pytest.approx(6, abs=1e-3)
    assert effective_rank(torch.ones(6, 8)) == pytest.approx(1, abs=1e-3)
    assert 1 < effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) < 2


def test_cosines_of_the_prompt_with_itself():
    found = geometry(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), Vocabulary(drawn(20, 2), Names()))
    assert torch.allclose(found.cosines_PP[2], torch.tensor([0.5**0.5, 0.5**0.5, 1.0]), atol=1e-6)


def test_prompt_that_did_not_move_lies_where_it_began():
    vocabulary = cloud(200, 8)
    for record in geometry(vocabulary.rows([3, 4]), vocabulary, [3, 4]).table:
        assert record["distance_percentile"] == record["init_distance_percentile"]
        assert record["norm_percentile"] == record["init_norm_percentile"]
