"""The rule, on planted results: which way is right follows from how they were made."""

import random
from dataclasses import replace

import pytest

from ptuning.comparison.recommendation import Needs, recommend
from ptuning.comparison.results import Costs, Results, WayResult
from ptuning.comparison.ways import WAYS

BY_NAME = {way.name: way for way in WAYS}
CHEAP = Costs(0, 1.0, None, 100, 0.0, 10.0, 100.0)


def way(name: str, accuracy: float, num_rows: int = 400, seeds: int = 1, milliseconds: float = 10.0) -> WayResult:
    """A way that is right on that share of the rows, the same rows first for all ways, with each seed."""
    own = BY_NAME[name]
    right = [int(i < round(accuracy * num_rows)) for i in range(num_rows)]
    costs = replace(CHEAP, milliseconds=milliseconds)
    return WayResult(name, own.title, own.facts, [right] * seeds, costs, reads_rows=own.reads_rows)


def noisy(name: str, accuracy: float, num_rows: int, seed: int) -> WayResult:
    """A way that is right on that share of the rows, whichever these are."""
    own, chance = BY_NAME[name], random.Random(seed)
    right = [int(chance.random() < accuracy) for _ in range(num_rows)]
    return WayResult(name, own.title, own.facts, [right], CHEAP, reads_rows=own.reads_rows)


def test_a_task_that_an_instruction_solves_needs_no_training() -> None:
    results = Results([way("zero-shot", 0.6), way("instruction", 0.95), way("few-shot", 0.95), way("lora", 0.96)])
    told = recommend(results, Needs(least_accuracy=0.94))
    assert told.way == "instruction"
    assert told.sentence.startswith("Take instruction: accuracy 0.950")
    assert "lora" in told.sentence


def test_data_that_changes_often_is_retrieved() -> None:
    results = Results(
        [
            way("zero-shot", 0.5),
            way("few-shot", 0.6),
            way("retrieved-bm25", 0.85),
            way("features", 0.9),
            way("lora", 0.95),
        ]
    )
    told = recommend(results, Needs(data_changes_often=True))
    assert (told.way, told.runner_up, told.is_told_apart) == ("retrieved-bm25", "few-shot", True)
    assert any(each.startswith("lora is out: new rows do not count at once (train again)") for each in told.reasons)


def test_many_tasks_on_one_base_keep_their_prompts() -> None:
    results = Results([way("zero-shot", 0.5), way("prompt-tuning", 0.9), way("all-weights", 0.95)])
    assert recommend(results, Needs()).way == "all-weights"
    assert recommend(results, Needs(many_tasks=True)).way == "prompt-tuning"


def test_with_many_rows_and_no_other_need_weights_win() -> None:
    results = Results([way("zero-shot", 0.5), way("tf-idf", 0.8), way("prompt-tuning", 0.9), way("all-weights", 0.97)])
    told = recommend(results, Needs())
    assert (told.way, told.runner_up, told.is_told_apart, told.num_rows_to_tell) == (
        *("all-weights", "prompt-tuning", True),
        None,
    )
    assert "The difference is 0.070 (" in told.sentence


def test_with_few_rows_a_way_that_learns_must_be_shown_to_be_better_with_its_worst_seed_too() -> None:
    own, plain = way("lora", 0.8), way("zero-shot", 0.5)
    unlucky = [int(i < 196) for i in range(400)]  # 0.49
    uneven = Results([plain, replace(own, scores=[*own.scores * 9, unlucky])])
    assert uneven.is_better("lora", "zero-shot")
    told = recommend(uneven, Needs(few_rows=True))
    assert told.way == "zero-shot"
    assert told.reasons == ["lora is out: with few training rows it is not shown to be better than zero-shot"]
    assert recommend(uneven, Needs()).way == "lora"
    assert recommend(Results([plain, replace(own, scores=own.scores * 3)]), Needs(few_rows=True)).way == "lora"


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_can_be_told_apart_it_says_so_and_how_many_rows_would_tell(seed: int) -> None:
    names = ("zero-shot", "few-shot", "features", "prompt-tuning")
    results = Results([noisy(name, 0.7, 30, 10 * seed + i) for i, name in enumerate(names)])
    told = recommend(results, Needs())
    assert told.way == "zero-shot"
    assert not told.is_told_apart
    assert told.sentence.startswith("Nothing can be told apart on these 30 rows. Take zero-shot")
    assert told.num_rows_to_tell is None or told.num_rows_to_tell > 30


def test_so_many_rows_tell_in_about_four_of_five_samples() -> None:
    def pair(num_rows: int, seed: int) -> Results:
        return Results([noisy("few-shot", 0.7, num_rows, 2 * seed), noisy("lora", 0.8, num_rows, 2 * seed + 1)])

    large = pair(4000, 0)
    assert large.num_rows_to_tell("lora", "few-shot") is None  # these tell already
    few = Results([replace(each, scores=[each.scores[0][500:600]]) for each in large.ways])
    exact = 2.8**2 * (0.7 * 0.3 + 0.8 * 0.2) / 0.1**2
    assert few.num_rows_to_tell("lora", "few-shot") == pytest.approx(exact, rel=1.5)
    told = [pair(round(exact), seed).is_better("lora", "few-shot") for seed in range(1, 41)]
    assert 0.6 < sum(told) / len(told) < 0.97


def test_a_need_that_no_way_meets_is_told() -> None:
    results = Results([way("zero-shot", 0.5, milliseconds=40), way("lora", 0.9, milliseconds=50)])
    told = recommend(results, Needs(most_milliseconds=20))
    assert told.way is None
    assert told.sentence == (
        "No way meets all needs. The best one, lora, does not: 50 ms a request, and at most 20 are allowed."
    )


def test_an_accuracy_that_no_way_reaches_is_told() -> None:
    told = recommend(Results([way("zero-shot", 0.5), way("lora", 0.9)]), Needs(least_accuracy=0.99))
    assert told.way == "lora"
    assert "No way that meets the other needs reaches 0.990." in told.sentence


def test_what_must_be_readable_is_text_or_words() -> None:
    results = Results([way("zero-shot", 0.5), way("tf-idf", 0.8), way("features", 0.95)])
    assert recommend(results, Needs(readable=True)).way == "tf-idf"


def test_it_does_not_say_that_nothing_can_be_told_apart_where_two_others_can() -> None:
    results = Results([way("zero-shot", 0.50), way("features", 0.55), noisy("lora", 0.58, 400, 0)])
    assert results.best(results.names) == "lora"
    assert results.is_better("features", "zero-shot")
    assert not any(results.is_better("lora", name) for name in ("zero-shot", "features"))
    told = recommend(results, Needs())
    assert told.sentence.startswith("Take zero-shot: accuracy 0.500")
    assert "cannot tell the two apart" in told.sentence


def test_where_seeds_differ_more_than_rows_more_seeds_are_asked_for() -> None:
    own, plain = way("lora", 0.8), way("zero-shot", 0.5)
    uneven = Results([plain, replace(own, scores=[way("lora", share).scores[0] for share in (0.99, 0.3)])])
    assert not uneven.is_better("lora", "zero-shot")
    assert uneven.num_rows_to_tell("lora", "zero-shot") is None
    told = recommend(uneven, Needs())
    assert (told.way, told.num_rows_to_tell) == ("zero-shot", None)
    assert "more seeds are needed. zero-shot is the simpler one" in told.sentence
    equal = Results([plain, replace(own, scores=plain.scores)])
    assert "no number of rows is known to tell" in recommend(equal, Needs()).sentence
