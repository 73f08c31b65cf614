"""Rules of thumb, on planted results: each holds, fails or cannot be told, as the rows were made."""

from dataclasses import replace

import pytest
from test_recommendation import noisy, way

from ptuning.comparison.results import Results, WayResult
from ptuning.comparison.rules_of_thumb import FAILED, HELD, NO_CORRECTION, NOT_TOLD, Rule, rules_of_thumb, rules_table

LITTLE, CHANGING, CONTEXT, FIRST, PERFORMANCE, COSTS = range(6)


def rule(place: int, *ways: WayResult, num_train: int = 5000) -> Rule:
    return rules_of_thumb(Results(ways), num_train)[place]


def test_little_data_is_judged_on_the_most_of_few_rows() -> None:
    plain, tuned = way("few-shot", 0.8), way("lora", 0.95)
    assert rule(LITTLE, plain, tuned).outcome == NOT_TOLD
    assert rule(LITTLE, plain, tuned).why == "All had 5,000 training rows; --curve measures fewer."
    assert rule(LITTLE, plain, tuned, num_train=20).outcome == FAILED
    fewer = {16: way("lora", 0.9).scores, 64: way("lora", 0.5).scores, 256: way("lora", 0.9).scores}
    prompted = {64: way("few-shot", 0.7).scores}
    told = rule(LITTLE, way("zero-shot", 0.6), replace(plain, fewer=prompted), replace(tuned, fewer=fewer))
    assert told.outcome == HELD
    assert told.why.startswith("few-shot 0.700, lora 0.500: 0.200 (0.1")
    assert told.why.endswith("With 64 rows.")


@pytest.mark.parametrize(("accuracy", "outcome"), [(0.8, HELD), (0.6, FAILED), (0.7, NOT_TOLD)])
def test_prompting_is_held_against_ways_that_learn(accuracy: float, outcome: str) -> None:
    ways = way("zero-shot", 0.5), way("retrieved-bm25", accuracy), way("features", 0.6), way("all-weights", 0.7)
    told = [rule(place, *ways) for place in (CHANGING, CONTEXT, FIRST)]
    assert [each.outcome for each in told] == [outcome] * 3
    assert told[0].why.endswith("all-weights takes 1 s to fit again.")
    assert f"retrieved-bm25 {accuracy:.3f}, all-weights 0.700" in told[1].why


def test_what_is_near_is_not_told_and_it_says_how_many_rows_would_tell() -> None:
    told = rule(FIRST, noisy("few-shot", 0.7, 40, 1), noisy("lora", 0.72, 40, 2))
    assert told.outcome == NOT_TOLD
    assert "test rows would tell" in told.why


def test_a_side_that_was_not_measured_is_told() -> None:
    told = [rule(place, way("features", 0.6), num_train=20) for place in range(6)]
    assert {each.outcome for each in told} == {NOT_TOLD}
    assert all("was measured" in each.why for each in told)


def timed(name: str, accuracy: float, seconds: float) -> WayResult:
    own = way(name, accuracy)
    return replace(own, costs=replace(own.costs, seconds=seconds))


def test_performance_and_costs_rise_where_each_step_does() -> None:
    def both(*pairs: tuple[float, float]) -> list[str]:
        names = ("features", "output-layers", "all-weights")
        ways = [timed(name, *pair) for name, pair in zip(names, pairs, strict=False)]
        return [rule(place, *ways).outcome for place in (PERFORMANCE, COSTS)]

    assert both((0.6, 1), (0.7, 2), (0.8, 30)) == [HELD, HELD]
    assert both((0.6, 1), (0.5, 2), (0.8, 1.5)) == [FAILED, FAILED]
    assert both((0.6, 1), (0.6, 1.05), (0.8, 30)) == [NOT_TOLD, NOT_TOLD]
    assert both((0.6, 1), (0.7, 2)) == [HELD, HELD]
    assert both((0.6, 1)) == [NOT_TOLD, NOT_TOLD]
    ways = Results([timed("features", 0.6, 1), timed("all-weights", 0.8, 30)])
    told = rules_of_thumb(ways, 5000, has_budget=True)[COSTS]
    assert (told.outcome, told.why) == (NOT_TOLD, "With --budget what is trained in steps has the same time.")


def test_the_main_score_is_told_whatever_it_is() -> None:
    ways = [way("documents", 0.9), way("conditioned-prompt", 0.5), way("lora", 0.7)]
    told = rules_of_thumb(Results(ways, "character F1"), 20)
    assert [told[place].outcome for place in (LITTLE, CHANGING, CONTEXT, FIRST)] == [HELD] * 4
    assert told[FIRST].why.startswith("documents 0.900, lora 0.700: 0.200 (0.1")
    assert not any("accura" in each.why for each in told)


def test_ways_that_were_not_measured_on_few_rows_do_not_stand_in_with_all_rows() -> None:
    failed, tuned = way("few-shot", 0.9), replace(way("lora", 0.95), fewer={64: way("lora", 0.7).scores})
    told = rule(LITTLE, way("zero-shot", 0.6), failed, tuned)
    assert told.why.startswith("zero-shot 0.600, lora 0.700: ")


def test_each_rule_says_what_was_checked_and_what_its_interval_leaves_out() -> None:
    rules = rules_of_thumb(Results([way("zero-shot", 0.6), way("lora", 0.7)]), 5000)
    said = [each.says for each in rules]
    assert "on these rows, which do not change" in said[CHANGING]
    assert "rows and documents looked up or not" in said[FIRST]
    assert "over 10% longer to fit, by times without an interval" in said[COSTS]
    assert rules_table(rules).columns["numbers"].endswith(NO_CORRECTION)
