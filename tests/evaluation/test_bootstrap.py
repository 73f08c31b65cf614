"""Intervals come from rows that are drawn again, the same rows for every prompt."""

import subprocess
import sys

import pytest
import torch

from ptuning.evaluation import bootstrap
from ptuning.evaluation.bootstrap import Resampled, Scores
from ptuning.evaluation.metrics import RowScores


def scores(correct, loss=None, labels=None):
    correct_N = torch.tensor(correct, dtype=torch.bool)
    log_probs_N = -torch.tensor(loss if loss is not None else [1.0] * len(correct))
    return RowScores(log_probs_N, correct_N, labels)


def halves(num, share):
    return Scores.one(scores([i < share * num for i in range(num)]))


def test_interval_of_a_mean_is_the_binomials():
    found = Resampled({"it": halves(400, 0.5)}).mean("it", "accuracy")
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)


def test_gain_is_paired_by_rows():
    same = Resampled({"one": halves(100, 0.5), "other": halves(100, 0.5)}).gain("one", "other", "accuracy")
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert not same.is_above_zero
    reversed_ = Scores.one(scores([i >= 50 for i in range(100)]))
    found = Resampled({"one": halves(100, 0.5), "other": reversed_}).gain("one", "other", "accuracy")
    assert found.value == 0.0
    assert found.low < -0.15


def test_gain_in_loss_is_how_much_lower_it_is():
    one, other = Scores.one(scores([True] * 50, [1.0] * 50)), Scores.one(scores([True] * 50, [3.0] * 50))
    found = Resampled({"one": one, "other": other}).gain("one", "other", "loss")
    assert (found.value, found.low) == (2.0, 2.0)


def test_share_that_is_kept_and_where_it_is_undefined():
    kinds = {"whole": halves(200, 0.9), "base": halves(200, 0.5), "half": halves(200, 0.7)}
    found = Resampled(kinds).kept("half", "whole", "base", "accuracy")
    assert found.value == pytest.approx(0.5, abs=1e-6)
    assert 0.3 < found.low < 0.5 < found.high < 0.7
    assert Resampled(kinds).kept("half", "base", "base", "accuracy").value is None
    assert str(Resampled(kinds).kept("half", "base", "whole", "accuracy")) == "undefined"


def test_prompts_of_a_kind_are_drawn_again_too():
    """Twenty prompts of which each is all right or all wrong: the interval is that of 20, not of 2,000."""
    parts = [(range(100), scores([k < 10] * 100)) for k in range(20)]
    found = Resampled({"random": Scores.several(parts, 100)}).mean("random", "accuracy")
    assert found.value == 0.5
    assert found.high - found.low > 0.3


def test_rows_that_were_not_read_do_not_count():
    parts = [([0, 1], scores([True, True])), ([2, 3], scores([False, True]))]
    resampled = Resampled({"it": Scores.several(parts, 4)})
    assert resampled.mean("it", "accuracy").value == 0.75
    assert (resampled.num_prompts("it"), resampled.num_rows("it")) == (2, 4)


def test_divergence_that_is_kept():
    def sure(chance):
        own_NC = torch.tensor([[chance, 1 - chance]]).log().expand(30, 2)
        return Scores.one(scores([True] * 30, labels=own_NC))

    kinds = {"soft": sure(0.9), "random": sure(0.5), "same": sure(0.9), "other": sure(0.1)}
    resampled = Resampled(kinds)
    assert resampled.divergence_kept("same", "soft", "random").value == pytest.approx(1.0)
    assert resampled.divergence_kept("random", "soft", "random").value == pytest.approx(0.0)
    assert resampled.divergence_kept("other", "soft", "random").value < 0
    assert resampled.divergence_kept("other", "soft", "soft").value is None
    nearly = Resampled({**kinds, "nearly": sure(0.9 + 1e-6)})
    assert nearly.divergence_kept("other", "soft", "nearly").value is None


def test_share_is_counted_over_a_base_of_its_own():
    kinds = {
        "whole": halves(200, 0.9),
        "base": halves(200, 0.5),
        "text": halves(200, 0.8),
        "random text": halves(200, 0.7),
    }
    found = Resampled(kinds).kept("text", "whole", "base", "accuracy", "random text")
    assert found.value == pytest.approx(0.25, abs=1e-6)


def random_kinds(num):
    """Three kinds of prompts, one of which has two prompts with half of the rows each."""
    generator = torch.Generator().manual_seed(5)

    def drawn(count, share):
        correct_N = torch.rand(count, generator=generator) < share
        labels_NC = torch.randn(count, 2, generator=generator).log_softmax(1)
        return RowScores(-torch.rand(count, generator=generator) * 2, correct_N, labels_NC)

    whole = Scores.one(drawn(num, 0.9))
    base = Scores.several([(rows, drawn(len(rows), 0.5)) for rows in (range(0, num, 2), range(1, num, 2))], num)
    return {"whole": whole, "base": base, "half": Scores.one(drawn(num, 0.7))}


def estimates(num):
    resampled = Resampled(random_kinds(num), seed=3)
    found = (
        resampled.mean("base", "loss"),
        resampled.gain("whole", "half", "accuracy"),
        resampled.kept("half", "whole", "base", "accuracy"),
        resampled.divergence_kept("half", "whole", "base"),
    )
    return [value for each in found for value in (each.value, each.low, each.high)]


def test_a_seed_always_gives_the_same_estimates():
    # fmt: off
    expected = [
        0.9526428580284119, 0.7673017978668213, 1.1317768096923828,  # mean
        0.08333337306976318, -0.050000011920928955, 0.21666669845581055,  # gain
        0.642857015132904, -0.6764183640480042, 1.3702301979064941,  # kept
        0.04051041603088379, -0.7031703591346741, 0.4275180697441101,  # divergence kept
    ]
    # fmt: on
    assert estimates(60) == pytest.approx(expected, abs=1e-6)


def test_draws_in_parts_are_the_draws_at_once(monkeypatch):
    whole = estimates(60)
    generator = torch.Generator().manual_seed(0)
    drawn_RN = torch.randint(60, (1000, 60), generator=generator)
    expected_RN = torch.stack([torch.bincount(each, minlength=60) for each in drawn_RN])
    monkeypatch.setattr(bootstrap, "_PART", 60 * 7)  # seven replicates at a time
    counts_RN = bootstrap._counts(60, torch.Generator().manual_seed(0))
    assert counts_RN[0].tolist() == [1] * 60
    assert torch.equal(counts_RN[1:].long(), expected_RN)
    assert estimates(60) == pytest.approx(whole, abs=1e-6)


def test_memory_for_many_rows_is_bounded():
    code = """
import resource, torch
from ptuning.evaluation.bootstrap import Resampled, Scores
from ptuning.evaluation.metrics import RowScores
num = 100_000
def scores(share):
    return Scores.one(RowScores(-torch.ones(num), torch.rand(num) < share, torch.zeros(num, 2)))
kinds = {"soft": scores(0.9), "random": scores(0.5), "text": scores(0.7)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resampled = Resampled(kinds)
assert 0.45 < resampled.kept("text", "soft", "random", "accuracy").value < 0.55
assert resampled.mean("soft", "loss").value == 1.0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(run.stdout) * 1024 < 300e6  # the counts take 100 MB; as float32 they would take 400 MB
