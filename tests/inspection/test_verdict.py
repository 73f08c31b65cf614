"""The verdict follows from what prompts do, never from geometry alone."""

import pytest
import torch

from ptuning.evaluation import RowScores
from ptuning.inspection.ladder import EMBEDDED, INIT_TEXT, NONE, RANDOM, SOFT, TEXT, UNTRAINED
from ptuning.inspection.resampling import Resampled, Scores
from ptuning.inspection.verdict import (
    DECORATIVE,
    ECHO,
    FAITHFUL,
    NO_EFFECT,
    NOT_JUDGED,
    PARTIAL,
    Thresholds,
    judge,
)

NUM = 500


def right_on(share):
    correct_N = torch.arange(NUM) < round(share * NUM)
    return Scores.one(RowScores(-1.0 - (~correct_N).float(), correct_N, torch.zeros(NUM, 2)))


def resampled(soft, text, random=0.5, untrained=0.5, init=0.5, embedded=None):
    shares = {NONE: 0.5, RANDOM: random, UNTRAINED: untrained, INIT_TEXT: init}
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


def test_a_small_sample_is_not_enough_for_faithful():
    few = {name: Scores.one(RowScores(-torch.ones(12), torch.arange(12) < n, torch.zeros(12, 2)))
           for name, n in ((RANDOM, 4), (SOFT, 11), (EMBEDDED, 11), (TEXT, 10))}  # fmt: skip
    assert judge(Resampled(few), 0.0).word in (PARTIAL, DECORATIVE)


def test_sentence_tells_the_numbers():
    verdict = judge(resampled(soft=0.9, text=0.7, embedded=0.8), 0.0)
    assert verdict.measure == "accuracy"
    assert verdict.gap.value == pytest.approx(0.1, abs=1e-6)
    assert verdict.learned.value == pytest.approx(0.4, abs=1e-6)
    assert "50% (" in verdict.sentence
    assert judge(resampled(soft=0.9, text=0.5), 0.0).sentence.startswith("Do not read this text")
    assert verdict.as_dict()["thresholds"] == {"faithful": 0.8, "partial": 0.2, "echo": 0.5}


def test_generated_answers_are_judged_by_their_loss():
    kinds = {
        name: Scores.one(RowScores(-torch.full((50,), loss), torch.zeros(50, dtype=torch.bool), None))
        for name, loss in ((RANDOM, 3.0), (SOFT, 1.0), (EMBEDDED, 1.1), (TEXT, 1.1))
    }
    verdict = judge(Resampled(kinds), 0.0)
    assert (verdict.word, verdict.measure) == (FAITHFUL, "loss")
    assert verdict.gain.value == pytest.approx(2.0)
