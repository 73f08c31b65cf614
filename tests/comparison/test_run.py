"""A whole comparison: the same rows for all, what is done is kept, and what fails does not stop the others."""

import html
import json
from pathlib import Path
from typing import Any

import pytest
from small import ROWS, config_in

import ptuning
from ptuning.comparison import bench, run
from ptuning.comparison.parts import Part
from ptuning.comparison.prompting import FewShot
from ptuning.comparison.protocol import Fitted, Job, Way
from ptuning.comparison.report import Comparison
from ptuning.comparison.ways import NAMES, WAYS
from ptuning.config import ComparisonConfig
from ptuning.errors import DataError, TrainingError
from ptuning.model import Backbone
from ptuning.training import DirectoryLock, Interrupted
from ptuning.training import run as training

FAST = ["zero-shot", "few-shot", "tf-idf", "output-layers"]


@pytest.fixture(autouse=True)
def less_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    effort = {"num_draws": 1, "demonstrations": (2, 4), "num_evaluations": 2, "num_timings": 1}
    whole = bench.Effort
    monkeypatch.setattr(bench, "Effort", lambda num_rates: whole(num_rates, **effort))


def compared(config: ComparisonConfig, backbone: Backbone, **given: Any) -> Comparison:
    return ptuning.compare(config, rows={**ROWS, **given}, backbone=backbone, verbose=False)


def told(comparison: Comparison) -> dict[str, Any]:
    """Everything but times and memory."""
    found = json.loads(json.dumps(comparison.as_dict()))
    for way in found["ways"].values():
        for name in ("seconds", "memory_bytes", "milliseconds", "rows_per_second"):
            del way["costs"][name]
    del found["rules_of_thumb"]  # two of them name seconds
    return found


class Spied(Way):
    """A way that notes which rows it is given."""

    def __init__(self, own: Way, seen: list[tuple[Any, ...]]) -> None:
        self.own, self.seen = own, seen
        self.name, self.title, self.facts = own.name, own.title, own.facts  # type: ignore[misc]
        self.depends_on_chance = own.depends_on_chance  # type: ignore[misc]

    def fit(self, job: Job) -> Fitted:
        fitted, seen = self.own.fit(job), self.seen
        whole, asked = fitted.label_scores, list[Any]()

        def noted(rows: Any) -> Any:
            asked.append([row.values for row in rows])
            return whole(rows)

        fitted.label_scores = noted  # type: ignore[method-assign]
        seen.append((self.name, [row.values for row in job.train], [row.values for row in job.validation], asked))
        return fitted


def test_every_way_gets_the_same_rows_and_reads_the_test_rows_once(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(run, "ways_named", lambda names: [Spied(way, seen) for way in WAYS])
    documents = tmp_path / "documents.txt"
    documents.write_text("The plot was good.\n\n" + "A bad film. " * 40)
    comparison = compared(config_in(tmp_path, compare__seeds=1, compare__documents=str(documents)), backbone)
    assert comparison.left_out == {}
    assert [name for name, *_ in seen] == list(NAMES)
    for name, train, validation, asked in seen:
        assert train == ROWS["train"], name
        assert validation == ROWS["validation"], name
        assert asked.count(ROWS["test"]) == 1, name
        assert not any(row in ROWS["test"] for rows in asked if rows != ROWS["test"] for row in rows), name
    assert comparison.results.num_rows == len(ROWS["test"])
    folder = comparison.directory
    assert json.loads((folder / "comparison.json").read_text())["ways"].keys() == set(NAMES)
    lines = (folder / "comparison.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["way", *NAMES]
    assert "<html" in (folder / "comparison.html").read_text()
    indexes = comparison.indexes()
    assert indexes is not None
    assert [each["way"] for each in indexes] == ["retrieved-bm25", "retrieved-hidden", "documents"]
    assert "What looking up costs" in (folder / "comparison.html").read_text()
    printed = "\n".join(comparison.lines())
    assert all(f"\n{name} " in printed for name in NAMES)
    assert not (folder / "compare.lock").exists()
    rules = comparison.as_dict()["rules_of_thumb"]
    assert [rule["says"] for rule in rules] == [rule.says for rule in comparison.rules]
    assert rules[0]["why"].endswith("With 20 rows.")
    assert all(f"\n{rule['outcome']:<10}{rule['says'][:40]}" in printed for rule in rules)
    assert all(html.escape(rule["why"]) in (folder / "comparison.html").read_text() for rule in rules)


def test_ways_that_depend_on_chance_are_repeated_with_other_seeds(backbone: Backbone, tmp_path: Path) -> None:
    comparison = compared(config_in(tmp_path, compare__ways=FAST), backbone)
    counts = {way.name: len(way.scores) for way in comparison.results.ways}
    assert counts == {"zero-shot": 1, "few-shot": 2, "tf-idf": 1, "output-layers": 2}
    assert comparison.results["few-shot"].spread is not None
    assert comparison.results["zero-shot"].spread is None


@pytest.mark.parametrize("place", [0, 2, 5])
def test_a_comparison_that_is_killed_and_resumed_gives_the_same_tables(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    whole = told(compared(config_in(tmp_path / "whole", compare__ways=FAST), backbone))
    config, made, count = config_in(tmp_path / "killed", compare__ways=FAST), run.made, iter(range(100))

    def killed(*arguments: Any) -> Any:
        if next(count) == place:
            raise KeyboardInterrupt
        return made(*arguments)

    monkeypatch.setattr(run, "made", killed)
    with pytest.raises(Interrupted, match=r"what is done is kept in .*: the same call goes on from there"):
        compared(config, backbone)
    done = len(list((tmp_path / "killed").rglob("result.json")))
    assert done == place
    assert not (tmp_path / "killed" / "compared" / "compare.lock").exists()
    assert told(compared(config, backbone)) == whole
    assert next(count) == place + 1 + 6 - done  # none was made twice


def test_a_prompt_that_was_being_trained_is_gone_on_with(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"compare__ways": ["prompt-tuning"], "compare__seeds": 1, "train__max_steps": 4, "train__save_steps": 2}
    whole = told(compared(config_in(tmp_path / "whole", **settings), backbone))
    after, count = training.Trainer._after_step, iter(range(100))

    def killed(*arguments: Any) -> None:
        if next(count) == 3:
            raise KeyboardInterrupt
        after(*arguments)

    monkeypatch.setattr(training.Trainer, "_after_step", killed)
    with pytest.raises(Interrupted):
        compared(config_in(tmp_path / "killed", **settings), backbone)
    assert told(compared(config_in(tmp_path / "killed", **settings), backbone)) == whole
    assert next(count) == 4 + 2  # steps 3 and 4 once more


def test_a_way_that_fails_is_told_and_the_others_finish(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any, job: Job) -> Fitted:
        raise ValueError("no\nmemory left")

    config = config_in(tmp_path, compare__ways=FAST)
    with monkeypatch.context() as patch:
        patch.setattr("ptuning.comparison.prompting.FewShot.fit", broken)
        comparison = compared(config, backbone)
    assert comparison.left_out == {"few-shot": "failed: ValueError: no memory left"}
    assert comparison.results.names == ["zero-shot", "tf-idf", "output-layers"]
    assert "few-shot is left out: failed: ValueError: no memory left" in comparison.lines()
    assert compared(config, backbone).results.names == FAST


def test_a_way_that_does_not_apply_is_skipped(backbone: Backbone, tmp_path: Path) -> None:
    config = config_in(tmp_path, compare__ways=["zero-shot", "instruction"], compare__instruction=None)
    assert compared(config, backbone).left_out["instruction"].startswith("skipped: no compare.instruction; expected")
    alone = config_in(tmp_path / "alone", compare__ways=["instruction"], compare__instruction=None)
    with pytest.raises(TrainingError, match=r"no way could be measured \(instruction: skipped"):
        compared(alone, backbone)


def test_the_curve_reads_fewer_rows_and_as_many_for_all(backbone: Backbone, tmp_path: Path) -> None:
    config = config_in(tmp_path, compare__ways=["zero-shot", "tf-idf", "few-shot"], compare__curve=True)
    comparison = compared(config, backbone)
    assert {way.name: list(way.curve) for way in comparison.results.ways} == {
        **{"zero-shot": [], "few-shot": [20, 16], "tf-idf": [20, 16]}
    }
    curve = comparison.curve()
    assert curve is not None
    assert list(curve.columns) == ["way", "16", "20"]
    fewer = comparison.results["tf-idf"].fewer
    assert {size: len(correct) for size, correct in fewer.items()} == {16: 2}
    assert comparison.results.with_rows(16)["tf-idf"].seed_scores == comparison.results["tf-idf"].curve[16]
    assert comparison.results.with_rows(16)["zero-shot"] == comparison.results["zero-shot"]
    parts = run.parts_of([WAYS[0], WAYS[3]], config.compare, 20)
    assert parts == [Part("zero-shot", 0, None), Part("tf-idf", 0, None), *(Part("tf-idf", i, 16) for i in (0, 1))]


def test_quick_does_less(backbone: Backbone, tmp_path: Path) -> None:
    config = config_in(tmp_path, compare__quick=True, compare__ways=["zero-shot"], train__max_steps=1000)
    many = [ROWS["test"][i % 12] for i in range(240)]
    comparison = compared(config, backbone, test=many)
    assert comparison.results.num_rows == 200
    inputs = run.Inputs.load(config.run, "cpu", run.Given({**ROWS, "test": many}, backbone))
    assert bench.Bench.of(config, inputs, "A text.").config.train.max_steps == 60


@pytest.mark.parametrize(
    ("settings", "given", "match"),
    [
        ({"train__max_steps": 4}, {}, "holds a comparison with other train.max_steps"),
        ({"compare__rates": 2}, {}, "holds a comparison with other compare.rates"),
        ({}, {"test": ROWS["test"][:-1]}, "holds a comparison with other test rows"),
    ],
)
def test_another_comparison_is_not_mixed_in(
    backbone: Backbone, tmp_path: Path, settings: dict[str, Any], given: dict[str, Any], match: str
) -> None:
    compared(config_in(tmp_path, compare__ways=["zero-shot"]), backbone)
    with pytest.raises(TrainingError, match=match):
        compared(config_in(tmp_path, compare__ways=["zero-shot"], **settings), backbone, **given)


def test_a_directory_of_something_else_or_in_use_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    config = config_in(tmp_path, compare__ways=["zero-shot"])
    folder = Path(config.train.output_dir)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="holds something else than a comparison"):
        compared(config, backbone)
    (folder / "notes.txt").unlink()
    other = DirectoryLock(folder / "compare.lock")
    assert other.acquire()
    with pytest.raises(TrainingError, match="is in use by process"):
        compared(config, backbone)
    other.release()


def test_a_result_that_has_changed_is_told_and_not_used(backbone: Backbone, tmp_path: Path) -> None:
    config = config_in(tmp_path, compare__ways=["zero-shot", "tf-idf"])
    compared(config, backbone)
    (file,) = (Path(config.train.output_dir) / "zero-shot").rglob("result.json")
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    assert "has changed since it was written" in compared(config, backbone).left_out["zero-shot"]


def test_rows_are_needed(backbone: Backbone, tmp_path: Path) -> None:
    config = config_in(tmp_path)
    with pytest.raises(DataError, match=r"a comparison without data.test"):
        ptuning.compare(config, backbone=backbone)
    with pytest.raises(DataError, match="a comparison without test rows"):
        ptuning.compare(config, rows={"train": ROWS["train"]}, backbone=backbone)


@pytest.mark.parametrize(
    ("num_train", "told"), [(None, "seed 1 {}; measured on all rows with 1 of 2 seeds"), (16, "16 rows, seed 0 {}; ")]
)
def test_a_way_of_which_a_part_failed_is_told_as_incomplete_and_not_as_left_out(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_train: int | None, told: str
) -> None:
    whole, broken = FewShot.fit, Part("few-shot", 1 if num_train is None else 0, num_train)

    def fit(self: FewShot, job: Job) -> Fitted:
        if str(broken.path(Path())) in str(job.directory):
            raise ValueError("no memory left")
        return whole(self, job)

    monkeypatch.setattr(FewShot, "fit", fit)
    config = config_in(tmp_path, compare__ways=["zero-shot", "few-shot"], compare__curve=num_train is not None)
    comparison = compared(config, backbone)
    assert comparison.left_out == {}
    why = told.format("failed: ValueError: no memory left")
    assert comparison.incomplete["few-shot"].startswith(why)
    assert len(comparison.results["few-shot"].scores) == (1 if num_train is None else 2)
    assert any(line.startswith(f"few-shot is incomplete: {why}") for line in comparison.lines())
    assert comparison.as_dict()["incomplete"] == comparison.incomplete
    page = (comparison.directory / "comparison.html").read_text()
    assert "<h2>Incomplete</h2>" in page
    assert "<h2>Left out</h2>" not in page
