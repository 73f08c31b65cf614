"""A classifier of texts in scikit-learn's manners, and words that are found for its task."""

import copy
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy
import pandas
import pytest
import torch
from conftest import review_rows, write_csv
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError as SklearnNotFitted
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted

import ptuning
from ptuning import Backbone, PromptClassifier, SoftPrompt
from ptuning.data import read_rows
from ptuning.errors import DataError, PromptError, PTuningError

ROWS = review_rows(64)
TEXTS, LABELS = [row["text"] for row in ROWS], [row["label"] for row in ROWS]
QUICK: dict[str, Any] = {
    "num_virtual_tokens": 4,
    "learning_rate": 0.05,
    "max_steps": 30,
    "dtype": "float32",
    "device": "cpu",
}


@pytest.fixture(scope="module")
def base(model_directory: Path) -> str:
    return str(model_directory)


@pytest.fixture(scope="module")
def fitted(base: str) -> PromptClassifier:
    return PromptClassifier(base, "review: {text}", **QUICK).fit(TEXTS, LABELS)


def test_texts_and_labels_are_enough(base: str) -> None:
    task = PromptClassifier(base, **{**QUICK, "max_steps": 2}).fit(TEXTS, LABELS).prompt_.task
    assert task is not None
    assert (task.template, task.answer) == ("{prompt:4}{text}\nLabel:", "{label}")
    assert task.verbalizer == {"negative": " negative", "positive": " positive"}


def test_labels_are_learnt(fitted: PromptClassifier) -> None:
    assert fitted.score(TEXTS, LABELS) > 0.9
    assert fitted.score(TEXTS[:2], LABELS[1::-1], sample_weight=[1, 3]) == 0
    assert fitted.prompt_.training["validation_rows"] == 13


def test_predictions_follow_the_probabilities_in_the_order_of_the_classes(fitted: PromptClassifier) -> None:
    probabilities = fitted.predict_proba(TEXTS[:5])
    assert probabilities.shape == (5, 2)
    numpy.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert fitted.classes_.tolist() == ["negative", "positive"]
    expected = [each.label for each in fitted.lm_.classify([{"text": text} for text in TEXTS[:5]])]
    assert fitted.predict(TEXTS[:5]).tolist() == expected
    assert fitted.predict_proba([]).shape == (0, 2)


@pytest.mark.parametrize("kinds", [[0, 1], [False, True], [2.5, 1.0]])
def test_labels_keep_their_type_and_are_saved_with_the_prompt(base: str, kinds: list[Any], tmp_path: Path) -> None:
    labels = [kinds[label == "positive"] for label in LABELS]
    classifier = PromptClassifier(base, **{**QUICK, "max_steps": 2}).fit(TEXTS, labels)
    assert classifier.classes_.tolist() == sorted(kinds)
    loaded = PromptClassifier.load(classifier.save(tmp_path / "prompt"), dtype="float32", device="cpu")
    assert loaded.predict(TEXTS).tolist() == classifier.predict(TEXTS).tolist()
    assert set(map(type, loaded.predict(TEXTS).tolist())) == {type(kinds[0])}


def test_a_frame_with_several_columns_is_learnt_by_their_names(base: str) -> None:
    frame = pandas.DataFrame({"title": TEXTS, "{year}": range(64), "topic": LABELS})
    classifier = PromptClassifier(base, **{**QUICK, "max_steps": 2})
    with pytest.raises(PTuningError, match=r"the column '{year}'; expected a name without braces"):
        classifier.fit(frame, "topic")
    frame = frame.rename(columns={"{year}": "year"})
    classifier.fit(frame, "topic", validation=(frame[:8], "topic"))
    assert classifier.prompt_.task is not None
    assert classifier.prompt_.task.template == "{prompt:4}title: {title}\nyear: {year}\nLabel:"
    assert classifier.prompt_.training["validation_rows"] == 8
    assert classifier.predict(frame).shape == (64,)
    renamed = frame.rename(columns={"topic": "other"})
    assert classifier.score(frame, "topic") == classifier.score(renamed, "other") == classifier.score(frame, LABELS)


def test_own_words_are_used(base: str) -> None:
    words = {"negative": " bad", "positive": " good"}
    classifier = PromptClassifier(base, "Review: {review}\nIt is", words, **{**QUICK, "max_steps": 2}).fit(
        TEXTS, LABELS
    )
    task = classifier.prompt_.task
    assert task is not None
    assert (task.template, task.verbalizer) == ("{prompt:4}Review: {review}\nIt is", words)
    assert classifier.predict(TEXTS).shape == (64,)
    split = PromptClassifier(base, "{prompt:2}{review}{prompt:3} is", words, **{**QUICK, "max_steps": 2})
    assert split.fit(TEXTS, LABELS).prompt_.num_virtual_tokens == 5


def test_labels_without_rows_are_left_out(base: str) -> None:
    words = {"negative": " bad", "positive": " good", "neutral": " so so"}
    classifier = PromptClassifier(base, verbalizer=words, **{**QUICK, "max_steps": 2}).fit(TEXTS, LABELS)
    assert classifier.classes_.tolist() == ["negative", "positive"]
    numpy.testing.assert_allclose(classifier.predict_proba(TEXTS[:3]).sum(axis=1), 1, rtol=1e-6)


def test_the_fitted_column_is_looked_at_where_no_labels_are_given(base: str) -> None:
    frame = pandas.DataFrame({"text": TEXTS, "topic": LABELS})
    classifier = PromptClassifier(base, **{**QUICK, "max_steps": 2}).fit(frame, "topic")
    assert classifier.score(frame) == classifier.score(frame, "topic") == classifier.score(TEXTS, LABELS)
    assert classifier.evaluate(frame).report() == classifier.evaluate(frame, "topic").report()
    assert classifier.inspect(frame).num_rows == 64


def test_columns_may_be_numbered(base: str) -> None:
    classifier = PromptClassifier(base, **{**QUICK, "max_steps": 2}).fit(pandas.DataFrame({0: TEXTS}), LABELS)
    assert classifier.prompt_.task is not None
    assert classifier.prompt_.task.template == "{prompt:4}{0}\nLabel:"
    assert classifier.predict(pandas.DataFrame({0: TEXTS})).tolist() == classifier.predict(TEXTS).tolist()


def test_rows_of_a_file_are_learnt(base: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", ROWS)
    rows = read_rows(str(tmp_path / "rows.csv"), "train", ["text", "label"])
    assert PromptClassifier(base, **{**QUICK, "max_steps": 2}).fit(rows).classes_.tolist() == ["negative", "positive"]


def test_labels_of_which_one_begins_another_get_an_end_mark(base: str) -> None:
    labels = ["cancel" if label == "negative" else "cancel booking" for label in LABELS]
    classifier = PromptClassifier(base, **{**QUICK, "max_steps": 2}).fit(TEXTS, labels)
    assert classifier.prompt_.task is not None
    assert classifier.prompt_.task.verbalizer == {"cancel": " cancel.", "cancel booking": " cancel booking."}


def test_a_loaded_model_is_shared_and_the_fit_is_that_of_its_seed(base: str, fitted: PromptClassifier) -> None:
    backbone = ptuning.Backbone.from_pretrained(base, "float32", "cpu")
    again = PromptClassifier(backbone, "review: {text}", **QUICK).fit(TEXTS, LABELS)
    assert again.lm_.backbone is backbone
    assert torch.equal(again.prompt_.embeddings_PH, fitted.prompt_.embeddings_PH)
    assert clone(again).base is backbone
    assert not hasattr(clone(again), "prompt_")


def test_scikit_learn_takes_it(base: str) -> None:
    backbone = ptuning.Backbone.from_pretrained(base, "float32", "cpu")
    classifier = PromptClassifier(backbone, "review: {text}", **QUICK)
    assert is_classifier(classifier)
    assert min(cross_val_score(classifier, TEXTS, LABELS, cv=2)) > 0.8
    search = GridSearchCV(classifier, {"learning_rate": [1e-6, 0.05]}, cv=2).fit(TEXTS, LABELS)
    assert search.best_params_ == {"learning_rate": 0.05}
    assert search.predict_proba(TEXTS[:3]).shape == (3, 2)
    pipeline = make_pipeline(FunctionTransformer(lambda texts: [text.lower() for text in texts]), classifier)
    assert pipeline.fit(TEXTS, LABELS).score(TEXTS, LABELS) > 0.8


def test_parameters_are_kept_as_they_are_given_and_copied(base: str) -> None:
    classifier = PromptClassifier(base, settings={"train.weight_decay": 0.1}, seed=3)
    assert classifier.get_params()["settings"] == {"train.weight_decay": 0.1}
    assert clone(classifier).get_params() == classifier.get_params()
    assert classifier.set_params(seed=4) is classifier
    assert repr(classifier) == f"PromptClassifier(base={base!r}, seed=4, settings={{'train.weight_decay': 0.1}})"
    assert repr(PromptClassifier(Path("models/base"))) == "PromptClassifier(base='models/base')"
    with pytest.raises(PTuningError, match="the parameter rate of PromptClassifier; expected one of base, template"):
        classifier.set_params(rate=1)


def test_settings_may_be_nested_and_reach_the_base(base: str, tmp_path: Path) -> None:
    nested = {"train": {"max_steps": 3}, "model": {"dtype": "bfloat16"}}
    quick = {key: value for key, value in QUICK.items() if key not in ("max_steps", "dtype")}
    classifier = PromptClassifier(base, settings=nested, **quick).fit(TEXTS, LABELS)
    assert classifier.prompt_.training["steps"] == 3
    assert classifier.lm_.backbone.dtype == torch.bfloat16
    loaded = PromptClassifier.load(classifier.save(tmp_path / "prompt"), settings={"model.dtype": "float32"})
    assert loaded.lm_.backbone.dtype == torch.float32
    with pytest.raises(PTuningError, match=r"PromptClassifier: unknown setting .*revison"):
        PromptClassifier(base, settings={"model.revison": "main"}).fit(TEXTS, LABELS)
    with pytest.raises(PTuningError, match=r"model.dtype with a loaded model; expected a model's name"):
        PromptClassifier(loaded.lm_.backbone, settings={"model.dtype": "float16"}).fit(TEXTS, LABELS)


def test_numbers_of_numpy_are_parameters_too(base: str) -> None:
    found = {**QUICK, "max_steps": numpy.int64(2), "learning_rate": numpy.float64(0.1)}
    assert PromptClassifier(base, **found).fit(TEXTS, LABELS).prompt_.training["steps"] == 2


def test_a_loaded_classifier_is_fitted_anew_with_its_own_words(base: str, tmp_path: Path) -> None:
    words = {"negative": " bad", "positive": " good"}
    first = PromptClassifier(base, "Review: {review}\nIt is", words, **{**QUICK, "max_steps": 2}).fit(TEXTS, LABELS)
    loaded = PromptClassifier.load(first.save(tmp_path / "prompt"), base, **{**QUICK, "max_steps": 3})
    assert loaded.fit(TEXTS, LABELS).prompt_.task == first.prompt_.task
    assert loaded.prompt_.training["steps"] == 3


def test_an_interrupted_fit_keeps_nothing_without_a_directory(base: str, tmp_path: Path) -> None:
    def interrupt(_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"interrupted; nothing is kept without output_dir"):
        PromptClassifier(base, **QUICK).fit(TEXTS, LABELS, on_step=interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"its checkpoint is in .*run: go on with resume=True"):
        PromptClassifier(base, output_dir=tmp_path / "run", **QUICK).fit(TEXTS, LABELS, on_step=interrupt)


def test_several_processes_need_a_directory(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PTuningError, match=r"several processes without output_dir"):
        PromptClassifier(base, **QUICK).fit(TEXTS, LABELS)


def test_a_classifier_must_be_fitted_first(base: str) -> None:
    classifier = PromptClassifier(base)
    for use in (lambda: classifier.predict(TEXTS), classifier.inspect, lambda: classifier.save("x")):
        with pytest.raises(PTuningError, match=r"a PromptClassifier that is not fitted; .*\. Call fit first"):
            use()
    with pytest.raises(SklearnNotFitted):
        check_is_fitted(classifier)


@pytest.mark.parametrize(
    ("texts", "labels", "told"),
    [
        (TEXTS, LABELS[:3], "3 answers for 64 rows"),
        (TEXTS, ["positive"] * 64, "64 rows with 1 label; expected two labels or more"),
        ("a film", LABELS, "str 'a film'; expected a list of rows"),
        (ROWS, "topic", "row 0 has no column 'topic'; expected the answers"),
        (
            pandas.DataFrame({"text": TEXTS, "topic": LABELS}),
            LABELS,
            r"labels that stand in the rows too, in the column 'topic'; .*fit\(rows, 'topic'\)",
        ),
        ([{"text": None}] * 64, LABELS, "column 'text' holds None"),
        (TEXTS, [None, *LABELS[1:]], "1 rows without a label, first of them row 0"),
        (TEXTS, 5, "answers 5; expected one for each row, or the name of their column"),
    ],
)
def test_what_cannot_be_learnt_is_told_in_a_line(base: str, texts: Any, labels: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        PromptClassifier(base, **QUICK).fit(texts, labels)


def test_an_evaluation_shows_both_sides_and_each_label(fitted: PromptClassifier) -> None:
    measured = fitted.evaluate(TEXTS, LABELS)
    assert measured.as_dict()["soft prompt"]["accuracy"] == fitted.score(TEXTS, LABELS)
    assert "the same words, no soft prompt" in measured.report()
    assert "recall" in str(measured)
    assert measured._repr_html_() == f"<pre>{measured.report()}</pre>"


def test_an_inspection_is_made_of_the_fitted_prompt(fitted: PromptClassifier, tmp_path: Path) -> None:
    report = fitted.inspect(TEXTS, LABELS)
    assert report.num_rows == 64
    assert report.save_html(tmp_path / "report.html").exists()
    assert fitted.inspect(k=2).num_rows is None


def test_a_saved_prompt_is_loaded_by_the_command_line_too(fitted: PromptClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "prompt")
    prompt = SoftPrompt.load(tmp_path / "prompt")
    assert prompt.training["classes"] == ["negative", "positive"]
    loaded = PromptClassifier.load(tmp_path / "prompt", fitted.lm_.backbone)
    assert loaded.evaluate(TEXTS, LABELS).report() == fitted.evaluate(TEXTS, LABELS).report()
    with pytest.raises(PromptError, match=r"a prompt with labels .*Load it with PromptClassifier"):
        ptuning.PromptGenerator.load(tmp_path / "prompt")


def test_a_prompt_of_the_command_line_is_scored_like_one_of_ones_own(base: str, tmp_path: Path) -> None:
    labels = [int(label == "positive") for label in LABELS]
    own = PromptClassifier(base, output_dir=tmp_path / "run", **{**QUICK, "max_steps": 3})
    own.fit(pandas.DataFrame({"review": TEXTS}), labels)
    assert own.score(TEXTS, labels) == own.score([{"review": text} for text in TEXTS], labels)
    loaded = PromptClassifier.load(tmp_path / "run", own.lm_.backbone)
    assert loaded.score(TEXTS, labels) == own.score(TEXTS, labels)


def test_columns_of_a_data_set_are_texts_and_labels(base: str) -> None:
    table = datasets.Dataset.from_list(ROWS)
    classifier = PromptClassifier(base, **{**QUICK, "max_steps": 2}).fit(table["text"], table["label"])
    assert classifier.classes_.tolist() == ["negative", "positive"]


def test_a_run_may_keep_its_files_and_call_back(base: str, tmp_path: Path) -> None:
    steps, evaluations = list[Any](), list[Any]()
    classifier = PromptClassifier(base, output_dir=tmp_path / "run", **{**QUICK, "max_steps": 3})
    classifier.fit(TEXTS, LABELS, on_step=steps.append, on_evaluate=evaluations.append)
    assert len(steps) == 3
    assert [each["step"] for each in evaluations] == [0, 1, 2, 3]
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_notebook_shows_what_it_is(fitted: PromptClassifier, base: str) -> None:
    assert "not fitted" in PromptClassifier(base)._repr_html_()
    assert "accuracy" in fitted._repr_html_()


@pytest.mark.parametrize(
    "copied", [lambda each: pickle.loads(pickle.dumps(each)), copy.deepcopy], ids=["pickle", "copy"]
)
def test_a_fitted_classifier_is_pickled_without_its_base(
    fitted: PromptClassifier, base: str, copied: Callable[[PromptClassifier], PromptClassifier]
) -> None:
    again = copied(fitted)
    assert (again.predict_proba(TEXTS[:4]) == fitted.predict_proba(TEXTS[:4])).all()
    assert again.get_params() == fitted.get_params()
    assert not hasattr(copied(PromptClassifier(base)), "prompt_")
    loaded = PromptClassifier(Backbone.from_pretrained(base, device="cpu"), "review: {text}")
    assert pickle.loads(pickle.dumps(loaded)).base == base
    assert copy.deepcopy(loaded).base is loaded.base
    assert len(pickle.dumps(fitted)) < 20_000


def test_a_fit_may_be_silent(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    PromptClassifier(base, **{**QUICK, "max_steps": 2}, verbose=False).fit(TEXTS, LABELS)
    assert capsys.readouterr() == ("", "")
