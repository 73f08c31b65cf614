"""The verdict follows from what prompts do, never from geometry alone."""

import pytest
import torch

from ptuning.errors import ConfigError
from ptuning.evaluation.bootstrap import Resampled, Scores
from ptuning.evaluation.metrics import RowScores
from ptuning.inspection.measures.ladder import EMBEDDED, INIT_TEXT, NONE, RANDOM, RANDOM_TEXT, SOFT, TEXT, UNTRAINED
from ptuning.inspection.verdict import (
    ADVICE,
    DECORATIVE,
    ECHO,
    FAITHFUL,
    NO_EFFECT,
    NOT_JUDGED,
    PARTIAL,
    WORDS,
    Thresholds,
    judge,
)

NUM = 500


def right_on(share):
    correct_N = torch.arange(NUM) < round(share * NUM)
    return Scores.one(RowScores(-1.0 - (~correct_N).float(), correct_N, torch.zeros(NUM, 2)))


def resampled(soft, text, random=0.5, untrained=0.5, init=0.5, embedded=None, none=0.5):
    shares = {NONE: none, RANDOM: random, UNTRAINED: untrained, INIT_TEXT: init}
    shares |= {EMBEDDED: text if embedded is None else embedded, TEXT: text, SOFT: soft}
    return Resampled({name: right_on(share) for name, share in shares.items()})


@pytest.mark.parametrize(
    ("shares", "share_init", "word"),
    [
        ({"soft": 0.9, "text": 0.89}, 0.0, FAITHFUL),
        ({"soft": 0.9, "text": 0.7}, 0.0, PARTIAL),
        ({"soft": 0.9, "text": 0.52}, 0.0, DECORATIVE),
        ({"soft": 0.9, "text": 0.4}, 0.0, DECORATIVE),
        ({"soft": 0.5, "text": 0.9}, 0.0, NO_EFFECT),
        ({"soft": 0.45, "text": 0.45}, 1.0, NO_EFFECT),
        ({"soft": 0.8, "text": 0.8, "none": 0.8}, 0.0, NO_EFFECT),  # random tokens do harm, and it does none
        ({"soft": 0.7, "text": 0.7, "none": 0.9}, 0.0, NO_EFFECT),
        ({"soft": 0.9, "text": 0.5}, 1.0, ECHO),
        ({"soft": 0.9, "text": 0.9, "init": 0.9, "untrained": 0.9}, 1.0, ECHO),  # it was put there
        ({"soft": 0.9, "text": 0.9, "init": 0.9}, 0.4, FAITHFUL),
        ({"soft": 0.9, "text": 0.9, "init": 0.5}, 0.6, FAITHFUL),  # the tokens that changed carry it
    ],
)
def test_verdict(shares, share_init, word):
    assert judge(resampled(**shares), share_init).word == word


def test_without_rows_nothing_is_judged():
    verdict = judge(None, 0.0)
    assert verdict.word == NOT_JUDGED
    assert "no evidence" in verdict.sentence


def test_thresholds_are_parameters():
    scores = resampled(soft=0.9, text=0.7)
    assert judge(scores, 0.0, Thresholds(faithful=0.3)).word == FAITHFUL
    assert judge(scores, 0.0, Thresholds(partial=0.6)).word == DECORATIVE
    assert judge(scores, 0.3, Thresholds(echo=0.2)).word == PARTIAL  # its text does more than the init's
    assert judge(resampled(soft=0.9, text=0.5), 0.3, Thresholds(echo=0.2)).word == ECHO


def of_counts(num, **counts):
    names = {"random": RANDOM, "soft": SOFT, "embedded": EMBEDDED, "text": TEXT, "random_text": RANDOM_TEXT}
    return Resampled(
        {
            names[each]: Scores.one(RowScores(-torch.ones(num), torch.arange(num) < count, torch.zeros(num, 2)))
            for each, count in counts.items()
        }
    )


def test_a_small_sample_is_not_judged():
    few = judge(of_counts(49, random=0, soft=49, embedded=49, text=49), 0.0)
    assert few.word == NOT_JUDGED
    assert few.sentence.startswith("49 rows were given, and 50 are needed")
    assert judge(of_counts(50, random=0, soft=50, embedded=50, text=50), 0.0).word == FAITHFUL
    assert judge(of_counts(60, random=20, soft=55, embedded=55, text=50), 0.0).word == PARTIAL


def test_decoding_is_measured_against_random_text_where_text_stands_elsewhere():
    scores = of_counts(400, random=100, soft=360, embedded=360, text=340, random_text=320)
    verdict = judge(scores, 0.0)
    assert verdict.word == DECORATIVE  # any text would do as much there
    assert verdict.fidelity.value == pytest.approx(20 / 260)


def test_mending_the_harm_of_a_place_is_no_merit():
    verdict = judge(of_counts(400, random=200, soft=360, embedded=360, text=280, random_text=120), 0.0)
    assert verdict.word == PARTIAL
    assert verdict.fidelity.value == pytest.approx(80 / 160)


def test_what_is_not_shown_is_not_denied():
    scores = of_counts(60, random=30, soft=45, embedded=40, text=40)
    verdict = judge(scores, 0.0, Thresholds(partial=0.5))
    assert (verdict.word, verdict.fidelity.high > 0.8) == (DECORATIVE, True)
    assert verdict.sentence.endswith("With more rows that could change.")
    assert not judge(resampled(soft=0.9, text=0.5), 0.0).sentence.endswith("could change.")
    assert judge(of_counts(60, random=30, soft=33, embedded=30, text=30), 0.0).sentence.endswith("could change.")
    assert not judge(of_counts(60, random=40, soft=10, embedded=30, text=30), 0.0).sentence.endswith("could change.")


@pytest.mark.parametrize("limits", [{"partial": 0.9}, {"echo": 1.5}, {"partial": -0.1}, {"rows": 1}])
def test_thresholds_that_contradict_are_refused(limits):
    with pytest.raises(ConfigError, match="threshold"):
        Thresholds(**limits)


def test_echo_is_never_told_from_geometry_alone():
    scores = of_counts(400, random=200, soft=360, embedded=360, text=358)
    assert judge(scores, 1.0).word == FAITHFUL  # what it began at was not measured


def test_conditioned_prompt_is_judged_by_its_embeddings():
    scores = of_counts(400, random=200, soft=360, embedded=210)
    verdict = judge(scores, 0.0)
    assert verdict.word == DECORATIVE
    assert "as embeddings, row by row, the decoding keeps" in verdict.sentence


def test_sentence_tells_the_numbers():
    verdict = judge(resampled(soft=0.9, text=0.7, embedded=0.8), 0.0)
    assert verdict.measure == "accuracy"
    assert verdict.gap.value == pytest.approx(0.1, abs=1e-6)
    assert verdict.learned.value == pytest.approx(0.4, abs=1e-6)
    assert "50% (" in verdict.sentence
    assert judge(resampled(soft=0.9, text=0.5), 0.0).sentence.startswith("Do not read this text")
    assert verdict.as_dict()["thresholds"] == {"faithful": 0.8, "partial": 0.2, "echo": 0.5, "rows": 50}


def test_generated_answers_are_judged_by_their_loss():
    kinds = {
        name: Scores.one(RowScores(-torch.full((50,), loss), torch.zeros(50, dtype=torch.bool), None))
        for name, loss in ((RANDOM, 3.0), (SOFT, 1.0), (EMBEDDED, 1.1), (TEXT, 1.1))
    }
    verdict = judge(Resampled(kinds), 0.0)
    assert (verdict.word, verdict.measure) == (FAITHFUL, "loss")
    assert verdict.gain.value == pytest.approx(2.0)


def test_every_verdict_says_what_to_do() -> None:
    assert set(ADVICE) == set(WORDS)
    verdict = judge(None, 1.0)
    assert verdict.advice == ADVICE[verdict.word] == verdict.as_dict()["advice"]
