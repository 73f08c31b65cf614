"""Planted sums of tokens are found again, and chance explains little."""

import pytest
import torch
from synthetic import Names, cloud, drawn

from ptuning.inspection.measures.token_sums import pursue, sparse
from ptuning.inspection.vocabulary.embeddings import Vocabulary

WIDTH = 256


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(drawn(2000, WIDTH) + 0.5, Names())


def planted(vocabulary: Vocabulary, num_atoms: int, noise: float, num: int = 60) -> tuple[torch.Tensor, list[set[int]]]:
    """Sums of centred tokens plus noise, whose length is a share of the sum's length."""
    generator = torch.Generator().manual_seed(num_atoms)
    sums, ids = [], []
    for i in range(num):
        chosen = torch.randperm(len(vocabulary), generator=generator)[:num_atoms]
        weights_A = 0.6 + 0.8 * torch.rand(num_atoms, generator=generator)
        sum_H = weights_A @ (vocabulary.matrix_VH[chosen] - vocabulary.mean_H)
        noise_H = torch.nn.functional.normalize(drawn(WIDTH, seed=1000 + i), dim=0)
        sums.append(vocabulary.mean_H + sum_H + noise * sum_H.norm() * noise_H)
        ids.append(set(chosen.tolist()))
    return torch.stack(sums), ids


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("num_atoms", [2, 3, 5])
def test_planted_mixtures_are_recovered(vocabulary, num_atoms, noise):
    sums_NH, ids = planted(vocabulary, num_atoms, noise)
    table = sparse(sums_NH, vocabulary, atoms=(num_atoms,), num_null=20)
    found = [set(record["ids"]) for record in table]
    recall = sum(len(one & other) for one, other in zip(found, ids, strict=True)) / sum(map(len, ids))
    assert recall >= 0.95
    assert min(table.column("explained")) > max(table.column("null_95"))
    if not noise:
        assert min(table.column("explained")) > 0.999


def test_chance_is_within_its_band(vocabulary):
    table = sparse(vocabulary.random_like(100, torch.Generator().manual_seed(5)), vocabulary, atoms=(3,), num_null=200)
    above = sum(record["explained"] > record["null_95"] for record in table)
    assert above <= 12


def test_differences_of_tokens_are_recovered_too(vocabulary):
    centred_AH = vocabulary.matrix_VH[[5, 9]] - vocabulary.mean_H
    (record,) = sparse((vocabulary.mean_H + centred_AH[0] - centred_AH[1])[None], vocabulary, atoms=(2,), num_null=9)
    assert dict(zip(record["ids"], record["weights"], strict=True)) == pytest.approx({5: 1.0, 9: -1.0}, abs=1e-3)


def test_atoms_are_weighed_by_least_squares():
    vocabulary = cloud(300, 64)
    sums_NH = drawn(5, 64, seed=2)
    (_, one), (_, two) = pursue(sums_NH, vocabulary, 2)
    assert torch.equal(two.ids_NK[:, 0], one.ids_NK[:, 0])
    assert (two.explained_N > one.explained_N).all()
    for n in range(5):
        atoms_HA = (vocabulary.rows(two.ids_NK[n].tolist()) - vocabulary.mean_H).T
        centred_H = sums_NH[n] - vocabulary.mean_H
        expected_A = torch.linalg.pinv(atoms_HA) @ centred_H
        assert torch.allclose(two.weights_NK[n], expected_A, atol=1e-4)
        left_H = centred_H - atoms_HA @ expected_A
        assert float(two.explained_N[n]) == pytest.approx(
            1 - float(left_H.square().sum() / centred_H.square().sum()), abs=1e-4
        )
