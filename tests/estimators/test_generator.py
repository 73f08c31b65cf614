"""A writer of answers, fitted on rows from memory."""

from pathlib import Path
from typing import Any

import pytest

from ptuning import PromptClassifier, PromptGenerator
from ptuning.errors import PromptError, PTuningError

ROWS = [{"title": f"the film {i}", "slug": "very good"} for i in range(24)]
QUICK: dict[str, Any] = {
    "num_virtual_tokens": 4,
    "learning_rate": 0.05,
    "max_steps": 150,
    "dtype": "float32",
    "device": "cpu",
}


@pytest.fixture(scope="module")
def writer(model_directory: Path) -> PromptGenerator:
    return PromptGenerator(str(model_directory), "Title: {title}\nSlug:", **QUICK).fit(ROWS, answer="slug")


def test_answers_are_learnt_and_written(writer: PromptGenerator) -> None:
    task = writer.prompt_.task
    assert task is not None
    assert (task.template, task.answer) == ("{prompt:4}Title: {title}\nSlug:", " {slug}")
    assert writer.generate(ROWS[:2], max_new_tokens=5) == ["very good", "very good"]
    assert writer.predict(["the film 3"]) == ["very good"]
    pieces = list(writer.generate(ROWS[:1], max_new_tokens=5, stream=True))
    assert "".join(each.text for each in pieces).strip() == "very good"


def test_a_writer_is_measured_inspected_and_saved(writer: PromptGenerator, tmp_path: Path) -> None:
    answers = [row["slug"] for row in ROWS]
    measured = writer.evaluate(ROWS, answers)
    assert measured.as_dict()["soft prompt"]["accuracy"] > 0.7
    assert measured.report() == writer.evaluate(ROWS, "slug").report()
    assert measured.report() == writer.evaluate(ROWS).report()
    assert writer.inspect(ROWS, "slug").num_rows == 24
    loaded = PromptGenerator.load(writer.save(tmp_path / "prompt"), dtype="float32", device="cpu")
    assert loaded.predict(ROWS[:2]) == writer.predict(ROWS[:2])
    with pytest.raises(PromptError, match=r"a prompt without labels; .*Load it with PromptGenerator"):
        PromptClassifier.load(tmp_path / "prompt")


def test_an_answer_behind_a_space_gets_no_second_one(model_directory: Path) -> None:
    writer = PromptGenerator(str(model_directory), "{title}\n", **{**QUICK, "max_steps": 2})
    task = writer.fit(ROWS, answer="slug", validation=ROWS[:3]).prompt_.task
    assert task is not None
    assert task.answer == "{slug}"
    assert writer.prompt_.training["validation_rows"] == 3


@pytest.mark.parametrize(
    ("template", "settings", "answer"),
    [
        ("Slug of {title}", None, " {slug}"),
        ("Slug of {title}", {"data": {"chat_template": True}}, "{slug}"),
    ],
)
def test_an_answer_follows_a_space_unless_a_chat_frames_it(
    model_directory: Path, template: str, settings: Any, answer: str
) -> None:
    writer = PromptGenerator(str(model_directory), template, settings=settings, **{**QUICK, "max_steps": 2})
    task = writer.fit(ROWS, answer="slug").prompt_.task
    assert task is not None
    assert task.answer == answer


def test_a_writer_needs_a_template(model_directory: Path) -> None:
    with pytest.raises(PTuningError, match="a PromptGenerator without a template"):
        PromptGenerator(str(model_directory)).fit(ROWS, answer="slug")
