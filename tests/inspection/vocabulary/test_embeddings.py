"""Equal rows are joined, odd tokens are flagged, and memory does not grow with the vocabulary."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_backbone
from synthetic import Names, cloud, drawn

from ptuning.inspection.vocabulary.embeddings import Vocabulary


def test_equal_rows_have_one_id():
    matrix_VH = drawn(50, 8)
    matrix_VH[[7, 20, 33]] = matrix_VH[4].clone()
    matrix_VH[40] = matrix_VH[9]
    vocabulary = Vocabulary(matrix_VH, Names())
    assert vocabulary.same_V[[4, 7, 20, 33]].tolist() == [4] * 4
    assert vocabulary.same_V[[9, 40]].tolist() == [9, 9]
    assert len(vocabulary.different_U) == 46
    assert vocabulary.is_same(33, 7)
    assert not vocabulary.is_same(33, 9)
    assert not vocabulary.is_same(33, None)
    assert vocabulary.flags(20) == ["duplicate"]
    assert vocabulary.flags(5) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num", [1001, 4099])
def test_no_equal_row_is_missed(num, dtype):
    matrix_VH = drawn(num, 64).to(dtype)
    copies = list(range(7, num, 14))
    matrix_VH[copies] = matrix_VH[3].clone()
    assert Vocabulary(matrix_VH, Names()).same_V[copies].tolist() == [3] * len(copies)


def test_rows_have_the_shape_of_their_ids():
    vocabulary = Vocabulary(drawn(50, 8).bfloat16(), Names())
    ids_NP = torch.tensor([[3, 4, 5], [9, 4, 0]])
    assert torch.equal(vocabulary.rows(ids_NP)[1], vocabulary.rows([9, 4, 0]))
    assert vocabulary.rows(ids_NP).dtype == torch.float32
    assert vocabulary.rows([]).shape == (0, 8)


def test_odd_tokens_are_flagged():
    backbone = tiny_backbone()
    weight_VH = backbone.model.get_input_embeddings().weight
    with torch.no_grad():
        weight_VH[300] *= 0.01
    vocabulary = Vocabulary.of(backbone)
    assert vocabulary.flags(0) == ["special"]
    assert "unused" in vocabulary.flags(300)
    (half,) = [i for i in range(3, 259) if backbone.tokenizer.convert_ids_to_tokens(i) == "Ã"]
    assert "byte" in vocabulary.flags(half)
    assert not {0, 1, 2, 300} & set(vocabulary.plain_ids)


@pytest.mark.parametrize("text", ["<unused12>", "<|reserved_special_token_3|>", "[unused5]"])
def test_tokens_kept_for_later_are_unused(text):
    class Reserved(Names):
        def convert_ids_to_tokens(self, ids):
            return text if ids == 3 else super().convert_ids_to_tokens(ids)

    assert Vocabulary(drawn(10, 4), Reserved()).flags(3) == ["unused"]


def test_chunks_change_nothing(monkeypatch):
    whole = cloud(300, 8)
    mean_H, norms_V, same_V = whole.mean_H, whole.norms_V, whole.same_V
    monkeypatch.setattr("ptuning.inspection.vocabulary.embeddings.CHUNK", 37)
    parts = cloud(300, 8)
    assert torch.allclose(parts.mean_H, mean_H, atol=1e-6)
    assert torch.equal(parts.norms_V, norms_V)
    assert torch.equal(parts.same_V, same_V)
    assert sum(len(ids) for ids, _, _ in parts.chunks()) == 300


def test_memory_for_a_large_vocabulary_is_bounded():
    code = """
import resource, torch
from synthetic import Names
from ptuning.inspection.measures.nearest_tokens import decode
from ptuning.inspection.measures.geometry import cloud
from ptuning.inspection.vocabulary.embeddings import Vocabulary
matrix_VH = torch.empty(128_000, 4096, dtype=torch.bfloat16)
for rows_CH in matrix_VH.split(1_000):  # nothing large is made before memory is read
    rows_CH.copy_(torch.randn(1, 4096) + torch.randint(-3, 4, (len(rows_CH), 4096), dtype=torch.int8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
vocabulary = Vocabulary(matrix_VH, Names())
prompt_PH, init_ids = vocabulary.rows([5, 70_000, 127_999]), [5, None, 9]
table = decode(prompt_PH, vocabulary, init_ids, k=2, num_null=9)
cloud(prompt_PH, vocabulary, init_ids)
assert [record["id"] for record in table if record["rank"] == 1] == [5, 70_000, 127_999]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    here = Path(__file__).parent.parent  # where `synthetic` is
    options: dict[str, Any] = {"capture_output": True, "text": True, "cwd": here}
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "2"}, check=True, **options
    )
    assert int(run.stdout) * 1024 < 0.8e9  # the vocabulary itself has 1.05 GB, in float32 it would have 2.1
