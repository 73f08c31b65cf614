"""The inspector's verdict on soft prompts: the inspector's own, on validation rows."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import review_rows
from small import ROWS, WRITING, config_in, job, little
from test_recommendation import way as way_result

import ptuning
from ptuning.comparison import tuning
from ptuning.comparison.protocol import some_of
from ptuning.comparison.tuning import ConditionedPrompt, PromptTuning
from ptuning.data import Row
from ptuning.inspection import inspect, verdict_of
from ptuning.model import Backbone

VALIDATION = review_rows(70, 40)


@pytest.mark.parametrize("answers", [{}, WRITING], ids=["labels", "texts"])
@pytest.mark.parametrize("way", [PromptTuning(), ConditionedPrompt()], ids=lambda way: way.name)
def test_it_is_that_of_a_whole_inspection(
    way: PromptTuning, answers: dict[str, Any], backbone: Backbone, tmp_path: Path
) -> None:
    given = job(backbone, tmp_path, train__max_steps=20, train__learning_rate=0.05, **answers)
    fitted = way.fit(little(given))
    for rows in (VALIDATION[:60], VALIDATION[:20]):
        assert verdict_of(fitted.prompt, backbone, rows) == inspect(fitted.prompt, backbone, rows).verdict
        told = fitted.verdict([Row(each, "") for each in rows])
        assert (told["word"] == "NOT JUDGED") == (len(rows) < 50)


def test_each_seed_is_judged_on_validation_rows_alone(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, whole = list[object](), tuning.verdict_of

    def noted(prompt: ptuning.SoftPrompt, base: Backbone, rows: list[dict[str, str]]) -> object:
        seen.append(rows)
        return whole(prompt, base, rows)

    monkeypatch.setattr(tuning, "verdict_of", noted)
    config = config_in(tmp_path, compare__ways=["zero-shot", "prompt-tuning"])
    rows = {**ROWS, "validation": VALIDATION}
    comparison = ptuning.compare(config, rows=rows, backbone=backbone, verbose=False)
    validation = [Row(each, "") for each in VALIDATION]
    assert seen == [[row.values for row in some_of(validation, 64)]] * 2
    told = comparison.as_dict()["ways"]
    assert told["zero-shot"]["verdicts"] == []
    verdicts = told["prompt-tuning"]["verdicts"]
    assert [each["word"] for each in verdicts] == ["NO EFFECT"] * 2  # three steps do nothing
    assert all(each["sentence"].startswith("These rows do not show the prompt to be better") for each in verdicts)
    assert comparison.facts().column("readable")[1].endswith("read as (here NO EFFECT)")
    assert any(re.match(r"prompt-tuning .* no \(NO EFFECT\) ", line) for line in comparison.lines())
    assert "(here NO EFFECT)" in (comparison.directory / "comparison.html").read_text()


def test_a_quick_comparison_judges_nothing(backbone: Backbone, tmp_path: Path) -> None:
    config = config_in(tmp_path, compare__ways=["prompt-tuning"], compare__quick=True)
    comparison = ptuning.compare(config, rows={**ROWS, "validation": VALIDATION}, backbone=backbone, verbose=False)
    assert comparison.results["prompt-tuning"].verdict == ""
    assert "(" not in comparison.facts().column("readable")[0]


def test_words_that_differ_by_seed_are_counted() -> None:

    words = [{"word": word, "sentence": ""} for word in ("PARTIAL", "NO EFFECT", "PARTIAL")]
    assert replace(way_result("prompt-tuning", 0.9), verdicts=words).verdict == "PARTIAL 2x, NO EFFECT 1x"
    assert way_result("lora", 0.9).verdict == ""
