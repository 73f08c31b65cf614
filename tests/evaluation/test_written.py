"""Generated answers are compared with the expected ones, as the definitions say."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptuning.evaluation import written
from ptuning.evaluation.written import WrittenMetrics, character_f1, exact_match, rouge_l

TEXTS = st.text(alphabet="ab c\n", max_size=8)
needs_rouge = pytest.mark.skipif(not written.has_rouge(), reason="rouge-score is not installed: ptuning[metrics]")


@pytest.mark.parametrize(
    ("own", "answer", "is_exact", "f1"),
    [
        ("Paris", "Paris", True, 1.0),
        (" in  Paris\n", "in Paris", True, 1.0),
        ("paris", "Paris", False, 0.8),  # 4 of 5 characters are shared
        ("aab", "abb", False, 2 / 3),  # a and b once each
        ("abcd", "dcba", False, 1.0),  # the order does not count
        ("", "", True, 1.0),
        ("", "a", False, 0.0),
    ],
)
def test_exact_match_and_character_f1_by_hand(own, answer, is_exact, f1):
    assert exact_match(own, answer) == is_exact
    assert character_f1(own, answer) == pytest.approx(f1)


@given(TEXTS, TEXTS)
def test_character_f1_is_the_harmonic_mean_of_the_shared_characters(own, answer):
    found, left = 0, list(" ".join(answer.split()))
    for character in " ".join(own.split()):
        if character in left:
            left.remove(character)
            found += 1
    sizes = [len(" ".join(text.split())) for text in (own, answer)]
    expected = 2 / (sizes[0] / found + sizes[1] / found) if found else float(not any(sizes))
    assert character_f1(own, answer) == pytest.approx(expected)
    assert character_f1(own, answer) == character_f1(answer, own)


@needs_rouge
def test_rouge_l_is_the_longest_common_subsequence_of_words_of_any_script():
    pairs = [
        ("the cat sat", "the cat on the mat", 2 * (2 / 3 * 2 / 5) / (2 / 3 + 2 / 5)),
        ("The Cat!", "the cat", 1.0),
        ("кот сидел дома", "кот дома", 0.8),
        ("...", "the cat", 0.0),
    ]
    own, answers, expected = zip(*pairs, strict=True)
    assert rouge_l(own, answers) == pytest.approx(expected)


@needs_rouge
def test_rouge_l_of_english_is_rouge_scores_own():
    from rouge_score.rouge_scorer import RougeScorer

    draw, words = random.Random(0), ["the", "Cat", "sat-on", "a", "mat."]
    own, answers = ([" ".join(draw.choices(words, k=draw.randrange(7))) for _ in range(50)] for _ in range(2))
    expected = [RougeScorer(["rougeL"]).score(*pair)["rougeL"].fmeasure for pair in zip(answers, own, strict=True)]
    assert rouge_l(own, answers) == expected
    assert len(set(expected)) > 5


@needs_rouge
def test_metrics_are_means_over_the_rows():
    metrics = WrittenMetrics.of(["the cat", "a dog"], ["the cat", "one dog"])
    shared = sum((Counter("a dog") & Counter("one dog")).values())
    expected = {
        "num_rows": 2,
        "exact_match": 0.5,
        "character_f1": pytest.approx((1 + 2 * shared / 12) / 2),
        "rouge_l": pytest.approx((1 + 0.5) / 2),
    }
    assert metrics.as_dict() == expected
    assert str(metrics) == "exact match 0.500, character F1 0.833, ROUGE-L 0.750 on 2 generated answers"


def test_without_rouge_score_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(written, "has_rouge", lambda: False)
    metrics = WrittenMetrics.of(["a"], ["a"])
    assert metrics.rouge_l is None
    assert "ROUGE-L not measured (install ptuning[metrics])" in str(metrics)
