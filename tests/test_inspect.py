"""A decoding is the exact nearest tokens, tells what is only the start's echo, and never comes without its note."""

import dataclasses
import json

import pytest
import torch
from families import tiny_backbone

import ptuning
from ptuning.errors import PromptError
from ptuning.initializers import from_ids
from ptuning.inspection import nearest as module
from ptuning.inspection.nearest import FIDELITY_NOTE, inspect, nearest, table
from ptuning.prompt import SoftPrompt

METRICS = ("cosine", "l2")
either_metric = pytest.mark.parametrize("metric", METRICS)


def random_rows(num_rows, width=16, seed=0):
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


def tuned(backbone, ids, distance=0.0, **init):
    """A prompt that started at tokens and moved some way from them, in units of the vocabulary's spread."""
    start_PH = from_ids(backbone.vocabulary_VH, ids)
    moved_PH = start_PH + distance * float(backbone.vocabulary_VH.std()) * random_rows(*start_PH.shape, seed=5)
    return SoftPrompt(moved_PH, init={"token_ids": ids} if init == {} else init)


def brute_force(query_PH, vocabulary_VH, k, metric):
    """Every pair one by one in double precision."""
    similarities, ids = [], []
    for query_H in query_PH.double():
        if metric == "l2":
            row = [-float((query_H - token_H).norm()) for token_H in vocabulary_VH.double()]
        else:
            row = [float(query_H @ token_H / query_H.norm() / token_H.norm()) for token_H in vocabulary_VH.double()]
        ids.append(sorted(range(len(row)), key=lambda i, row=row: -row[i])[:k])
        similarities.append([row[i] for i in ids[-1]])
    return torch.tensor(similarities), ids


@either_metric
def test_real_tokens_decode_to_themselves(any_backbone, metric):
    ids = list(range(3, 338))
    found = inspect(tuned(any_backbone, ids), any_backbone, k=1, metric=metric)
    assert [token.nearest[0].id for token in found.tokens] == ids
    assert [token.nearest[0].token for token in found.tokens] == [any_backbone.tokenizer.decode([i]) for i in ids]
    similarities = [token.nearest[0].similarity for token in found.tokens]
    assert similarities == pytest.approx([1.0 if metric == "cosine" else 0.0] * len(ids), abs=1e-6)
    assert found.num_init == len(ids)
    assert all(token.is_init for token in found.tokens)


@either_metric
@pytest.mark.parametrize("chunk", [7, 50, 1000])
def test_nearest_tokens_are_those_of_brute_force(monkeypatch, metric, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    query_PH, vocabulary_VH = random_rows(5, seed=1), random_rows(120)
    expected_PK, ids = brute_force(query_PH, vocabulary_VH, 10, metric)
    similarity_PK, ids_PK = nearest(query_PH, vocabulary_VH, 10, metric)
    assert ids_PK.tolist() == ids
    assert (similarity_PK - expected_PK).abs().max() < 1e-5
    assert similarity_PK.dtype == torch.float32


@either_metric
@pytest.mark.parametrize("chunk", [8, 1000])
def test_of_equal_tokens_the_lower_ids_come_first(monkeypatch, metric, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    vocabulary_VH = random_rows(50)
    vocabulary_VH[25:45] = vocabulary_VH[7]
    vocabulary_VH[3] = vocabulary_VH[7]
    _, ids_PK = nearest(vocabulary_VH[[7]], vocabulary_VH, 5, metric)
    assert ids_PK.tolist() == [[3, 7, 25, 26, 27]]
    _, ids_PK = nearest(vocabulary_VH[[7]], vocabulary_VH, 1, metric)
    assert ids_PK.tolist() == [[3]]


def test_metrics_differ_where_lengths_do():
    vocabulary_VH = torch.tensor([[10.0, 0.0], [1.0, 1.0]])
    query_PH = torch.tensor([[1.0, 0.0]])
    assert nearest(query_PH, vocabulary_VH, 1, "cosine")[1].tolist() == [[0]]
    assert nearest(query_PH, vocabulary_VH, 1, "l2")[1].tolist() == [[1]]


def test_nearest_tokens_of_a_model_in_bfloat16_are_found_too():
    backbone = tiny_backbone()
    backbone.model.to(torch.bfloat16)
    found = inspect(tuned(backbone, [5, 300, 17]), backbone, k=3)
    assert [token.nearest[0].id for token in found.tokens] == [5, 300, 17]
    assert found.num_init == 3


def test_virtual_token_that_moved_away_no_longer_is_its_start(backbone):
    ids = list(range(3, 63))
    far = inspect(tuned(backbone, ids, distance=3.0), backbone)
    is_init = [token.is_init for token in far.tokens]
    assert is_init == [token.nearest[0].id == i for token, i in zip(far.tokens, ids, strict=True)]
    assert 0 < far.num_init == sum(is_init) < len(ids)
    assert [token.init_token for token in far.tokens] == [backbone.tokenizer.decode([i]) for i in ids]


def test_duplicate_of_the_initial_token_counts_as_the_initial_token():
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[300] = backbone.model.get_input_embeddings().weight[20]
    found = inspect(tuned(backbone, [300, 20, 30]), backbone, k=2)
    assert [token.nearest[0].id for token in found.tokens] == [20, 20, 30]
    assert [token.nearest[1].id for token in found.tokens][:2] == [300, 300]
    assert found.num_init == 3


def test_prompt_that_started_at_no_token_has_no_initial_tokens(backbone):
    for init in ({"kind": "random"}, {"token_ids": [None, None, None]}, {"token_ids": None}):
        found = inspect(tuned(backbone, [5, 6, 7], **init), backbone)
        assert [(token.init_token, token.is_init) for token in found.tokens] == [(None, False)] * 3
        assert found.num_init == 0


def test_some_virtual_tokens_may_have_started_at_tokens(backbone):
    found = inspect(tuned(backbone, [5, 6, 7], token_ids=[5, None, 9]), backbone)
    assert [token.is_init for token in found.tokens] == [True, False, False]
    assert [token.init_token is None for token in found.tokens] == [False, True, False]
    assert found.num_init == 1


def test_norms_are_told_beside_the_vocabularys():
    backbone = tiny_backbone()
    with torch.no_grad():
        weight_VH = backbone.model.get_input_embeddings().weight
        weight_VH.copy_(
            torch.nn.functional.normalize(weight_VH, dim=1) * torch.arange(1.0, len(weight_VH) + 1)[:, None]
        )
    unit_H = torch.nn.functional.one_hot(torch.tensor(0), backbone.width).float()
    norms = torch.tensor([0.5, 169.5, 400.0])
    found = inspect(SoftPrompt(norms[:, None] * unit_H), backbone)
    assert [token.norm for token in found.tokens] == pytest.approx(norms.tolist())
    assert [token.norm_percentile for token in found.tokens] == pytest.approx([0.0, 50.0, 100.0])
    assert found.vocabulary_norm_percentiles == pytest.approx({"5": 17.85, "50": 169.5, "95": 321.15}, abs=1e-2)
    assert [token.position for token in found.tokens] == [0, 1, 2]


@either_metric
def test_inspection_is_plain_data(backbone, metric):
    found = inspect(tuned(backbone, [5, 6], distance=1.0), backbone, k=2, metric=metric)
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain == dataclasses.asdict(found)
    assert plain["metric"] == metric
    assert [len(token["nearest"]) for token in plain["tokens"]] == [2, 2]
    assert plain["note"] == FIDELITY_NOTE


def test_table_lists_every_virtual_token_and_ends_with_the_note(backbone):
    newline = backbone.tokenizer("\n", add_special_tokens=False).input_ids[0]
    found = inspect(tuned(backbone, [5, newline, 320, 7], token_ids=[5, newline, None, 9]), backbone, k=2)
    lines = table(found)
    assert not any("\n" in line for line in lines)
    assert lines[0].startswith("nearest vocabulary tokens by cosine; vocabulary norms: ")
    assert lines[1].split() == ["initialised", "from", "still", "norm", "pct", "nearest"]
    assert lines[-2] == "2 of 4 virtual tokens still decode to their initial token."
    assert lines[-1] == FIDELITY_NOTE
    assert len(lines) == 2 + 4 + 2
    for token, line, still in zip(found.tokens, lines[2:6], ["yes", "yes", "no", "no"], strict=True):
        start = "-" if token.init_token is None else repr(token.init_token)
        assert line.split()[0] == str(token.position)
        assert f" {start} " in line
        assert still in line.split()
        assert f"{token.norm:.3f}" in line
        assert all(f"{each.token!r} {each.similarity:.2f}" in line for each in token.nearest)


@pytest.mark.parametrize("k", [0, -1, 339])
def test_impossible_number_of_neighbours_is_refused(backbone, k):
    with pytest.raises(PromptError, match=f"k={k} neighbours; expected from 1 to 338"):
        inspect(tuned(backbone, [5]), backbone, k=k)
    assert len(inspect(tuned(backbone, [5]), backbone, k=338).tokens[0].nearest) == 338


def test_prompt_of_another_width_is_refused(backbone):
    with pytest.raises(PromptError, match="a prompt of width 16; expected the base's width 32"):
        inspect(SoftPrompt(random_rows(4, 16)), backbone)


def test_inspect_is_part_of_the_public_face(backbone):
    prompt = tuned(backbone, [5, 6])
    assert ptuning.inspect(prompt, backbone).as_dict() == inspect(prompt, backbone).as_dict()


@pytest.mark.real_model
def test_real_vocabulary_decodes_to_itself_but_for_tokens_in_one_direction(real_backbone):
    vocabulary_VH = real_backbone.vocabulary_VH
    drawn = torch.randperm(len(vocabulary_VH), generator=torch.Generator().manual_seed(0))
    for metric, count in (("cosine", 300), ("l2", 30)):
        ids = drawn[:count]
        similarity_PK, ids_PK = nearest(vocabulary_VH[ids], vocabulary_VH, 1, metric)
        decoded_PH = vocabulary_VH[ids_PK[:, 0]]  # tokens never trained differ by no more than rounding
        assert (torch.cosine_similarity(decoded_PH, vocabulary_VH[ids]) > 1 - 1e-5).all()
        assert (ids_PK[:, 0] == ids).float().mean() > 0.95
        assert (similarity_PK - float(metric == "cosine")).abs().max() < 1e-5
