"""Indexes beside independent code that finds the same, and what is taken of what they find."""

from collections import Counter
from pathlib import Path

import bm25s
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import ROWS, TEMPLATE, rows

from ptuning.comparison.indexes import VECTORS, StateIndex, WordIndex, balanced, nearest
from ptuning.comparison.reading import hidden_states
from ptuning.comparison.storage import Saved
from ptuning.data import Row, Task
from ptuning.errors import DataError
from ptuning.model import Backbone

TASK = Task(TEMPLATE).without_prompt()
TEXTS = ["The film was good.", "a BAD film, very bad", "nothing of it", "good good 63 film", ""]


def test_words_are_compared_as_bm25s_does() -> None:
    pattern = {"stopwords": None, "token_pattern": r"(?u)\b\w+\b", "show_progress": False}
    plain = bm25s.BM25()
    plain.index(bm25s.tokenize(TEXTS, **pattern), show_progress=False)
    asked = bm25s.tokenize([row["text"] for row in ROWS["test"]], **pattern)
    places, scores = plain.retrieve(asked, k=len(TEXTS), show_progress=False)
    nearness_QN = WordIndex(TASK, TEXTS).nearness(rows("test"))
    torch.testing.assert_close(nearness_QN.gather(1, torch.from_numpy(places).long()), torch.from_numpy(scores))
    assert nearness_QN.argmax(dim=1).tolist() == places[:, 0].tolist()


def test_a_row_without_a_known_word_is_near_to_nothing_and_texts_without_words_are_refused() -> None:
    index = WordIndex(TASK, TEXTS)
    assert index.nearness([Row({"text": text}, "row") for text in ("", "?!", "zebra")]).tolist() == [[0.0] * 5] * 3
    with pytest.raises(DataError, match=r"2 texts without a single word; expected words to compare"):
        WordIndex(TASK, ["", "?!"])


def test_hidden_states_are_compared_by_their_cosine_from_their_mean(backbone: Backbone) -> None:
    train_NH, test_QH = (hidden_states(backbone, TASK, rows(split))[1] for split in ("train", "test"))
    own, asked = train_NH - train_NH.mean(0), test_QH - train_NH.mean(0)
    expected = torch.nn.functional.cosine_similarity(asked[:, None], own[None], dim=2)
    index = StateIndex.of_rows(backbone, TASK, rows("train"))
    torch.testing.assert_close(index.nearness(rows("test")), expected, atol=1e-5, rtol=1e-5)
    assert index.num_bytes == 20 * backbone.width * 4


def test_texts_and_rows_have_a_mean_of_their_own(backbone: Backbone) -> None:
    text_rows = [Row({"text": text}, "text") for text in TEXTS]
    text_NH, test_QH = (
        hidden_states(backbone, Task("{text}"), text_rows)[1],
        hidden_states(backbone, TASK, rows("test"))[1],
    )
    asked = test_QH - hidden_states(backbone, TASK, rows("validation"))[1].mean(0)
    expected = torch.nn.functional.cosine_similarity(asked[:, None], (text_NH - text_NH.mean(0))[None], dim=2)
    index = StateIndex.of_texts(backbone, TASK, TEXTS, rows("validation"))
    torch.testing.assert_close(index.nearness(rows("test")), expected, atol=1e-5, rtol=1e-5)


def test_vectors_are_made_anew_where_their_file_is_gone(backbone: Backbone, tmp_path: Path) -> None:
    text_rows = [Row({"text": text}, "text") for text in TEXTS]
    index = StateIndex.of_texts(backbone, TASK, TEXTS, rows("validation"))
    index.save(tmp_path)
    for is_there in (True, False):
        assert (tmp_path / VECTORS).exists() == is_there
        found = StateIndex.load(Saved(tmp_path, {}, TASK, backbone), Task("{text}"), text_rows)
        torch.testing.assert_close(found.nearness(rows("test")), index.nearness(rows("test")), atol=1e-6, rtol=1e-5)
        (tmp_path / VECTORS).unlink(missing_ok=True)


def test_the_nearest_come_first() -> None:
    nearness_QN = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    assert nearest(nearness_QN, 2).tolist() == [[1, 2], [0, 1]]
    assert nearest(nearness_QN, 9).tolist() == [[1, 2, 0], [0, 1, 2]]


def test_balanced_takes_as_many_of_each_label() -> None:
    labels_N, nearness_QN = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([[9.0, 8.0, 7.0, 2.0, 1.0, 3.0]])
    assert balanced(nearness_QN, labels_N, 3).tolist() == [[0, 5, 3]]
    assert balanced(nearness_QN, labels_N, 4).tolist() == [[0, 1, 5, 3]]
    assert balanced(nearness_QN, labels_N, 6).tolist() == [[0, 1, 2, 5, 3, 4]]
    assert balanced(nearness_QN, labels_N, 2).tolist() == [[0, 5]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=24), st.integers(1, 16), st.integers(0, 1000))
def test_balanced_is_fair_whatever_the_rows(labels: list[int], number: int, seed: int) -> None:
    nearness_QN = torch.rand(2, len(labels), generator=torch.Generator().manual_seed(seed))
    for own, near in zip(
        balanced(nearness_QN, torch.tensor(labels), number).tolist(), nearness_QN.tolist(), strict=True
    ):
        assert len(own) == len(set(own)) == min(number, len(labels))
        assert [near[i] for i in own] == sorted((near[i] for i in own), reverse=True)
        counts, all_counts = Counter(labels[i] for i in own), Counter(labels)
        for label, total in all_counts.items():
            assert counts[label] == total or counts[label] >= max(counts.values()) - 1
            taken = sorted((near[i] for i in own if labels[i] == label), reverse=True)
            ranked = sorted((near[i] for i in range(len(labels)) if labels[i] == label), reverse=True)
            assert taken == ranked[: counts[label]]
