"""Labels of several tokens: few questions that ask for every token of every label, whatever the labels are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptuning.export.vllm.labels import MOST_IDS, LabelPaths

LABELS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple), min_size=2, max_size=40, unique=True)


def log_prob(beginning: tuple[int, ...], token: int) -> float:
    """Any number that depends on both."""
    return -float(hash((beginning, token)) % 1000) / 100


def answered(paths: LabelPaths) -> dict[tuple[int, ...], dict[int, float]]:
    found: dict[tuple[int, ...], dict[int, float]] = {}
    for question in paths.questions:
        for beginning in question.beginnings:
            found.setdefault(beginning, {}).update({i: log_prob(beginning, i) for i in question.ids})
    return found


@given(LABELS)
def test_a_labels_score_is_the_sum_over_its_tokens(labels: list[tuple[int, ...]]) -> None:
    paths = LabelPaths(labels)
    expected = [sum(log_prob(ids[:n], ids[n]) for n in range(len(ids))) for ids in labels]
    assert paths.log_probs(answered(paths)) == pytest.approx(expected)
    asked = [beginning for question in paths.questions for beginning in question.beginnings]
    assert len(asked) == len(set(asked)) == len({ids[:n] for ids in labels for n in range(len(ids))})
    assert paths.are_single == all(len(ids) == 1 for ids in labels)


def test_labels_of_one_token_are_one_question() -> None:
    (question,) = LabelPaths([(7,), (3,)]).questions
    assert (question.beginnings, question.ids) == (((),), (7, 3))


def test_no_question_asks_for_more_than_vllm_gives() -> None:
    labels = [(i, i % 7) for i in range(300)]
    paths = LabelPaths(labels)
    assert max(len(question.ids) for question in paths.questions) <= MOST_IDS
    assert max(len(question.beginnings) for question in paths.questions) <= 16
    expected = [log_prob((), i) + log_prob((i,), i % 7) for i, _ in labels]
    assert paths.log_probs(answered(paths)) == pytest.approx(expected)
    assert sum(() in question.beginnings for question in paths.questions) == 3  # 300 first tokens
