"""The whole report: verdict first, plain data, lines for a terminal, from the library and from the command line."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import write_csv
from families import tiny_backbone
from test_ladder import IDS, ROWS, TASK, tuned

import ptuning
from ptuning.cli import main as cli
from ptuning.config.run import RunConfig
from ptuning.errors import PromptError
from ptuning.evaluation.charts import Bar, Bars
from ptuning.evaluation.table import Table
from ptuning.inspection.measures import catalogue
from ptuning.inspection.measures.nearest_tokens import FIDELITY_NOTE, badges
from ptuning.inspection.measures.protocol import Measured
from ptuning.inspection.page import page
from ptuning.inspection.report import inspect
from ptuning.inspection.terminal import lines
from ptuning.inspection.verdict import ECHO, NOT_JUDGED, WORDS
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.model import Backbone
from ptuning.prompts.soft_prompt import SoftPrompt
from ptuning.training.run import train
from ptuning.training.run_directory import RunDirectory

original = Vocabulary.of
VALUES = [row.values for row in ROWS * 3]  # as many as are needed to judge


@pytest.fixture(scope="module")
def tiny():
    return tiny_backbone(std=0.4)


@pytest.fixture(scope="module")
def report(tiny):
    return inspect(tuned(tiny), tiny, VALUES, k=3, human="a good film")


def test_report_is_plain_data(report):
    plain = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert plain["verdict"]["word"] in WORDS
    assert plain["note"] == FIDELITY_NOTE
    of_measures = ["geometry", "ladder", "answers", "confusion", "decoding", "atoms", "importance", "trajectory"]
    assert set(plain) == {"verdict", "metric", "note", "row", "provenance", *of_measures}
    for name in ("decoding", "atoms", "importance"):
        assert set(plain[name]["records"][0]) == set(plain[name]["columns"])
    assert len(plain["decoding"]["records"]) == 15
    assert plain["trajectory"] is None


def test_lines_begin_with_the_verdict_and_end_with_the_note(report):
    shown = lines(report)
    scores = {record["rung"]: record["accuracy"] for record in report.ladder.table}
    assert (
        shown[0]
        == report.verdict.effect
        == (
            f"With the prompt: accuracy {scores['soft prompt']:.3f} on 72 rows; with the same words without it: "
            f"{scores['no prompt']:.3f}."
        )
    )
    assert shown[1].startswith(f"{report.verdict.word}: ")
    assert shown[-1] == FIDELITY_NOTE
    assert not any("\n" in line for line in shown)
    for name in ("no prompt", "random tokens", "human prompt", "decoding as text", "soft prompt"):
        assert any(line.startswith(name) for line in shown)
    for record in report.decoding.table:
        assert any(f"{record['token']!r} {record['cosine']:.2f}" in line for line in shown)


def test_lines_fit_a_terminal(report):
    whole, fitted = lines(report), lines(report, 60)
    assert max(map(len, fitted)) <= 60 < max(map(len, whole))
    assert " ".join(fitted).startswith(whole[0])  # sentences are broken, not cut
    assert sum(line.endswith("\u2026") for line in fitted) >= report.decoding.table[-1]["position"]


def test_untrained_prompt_is_an_echo_or_nothing(tiny):
    word = inspect(tuned(tiny, distance=0.0), tiny, VALUES).verdict.word
    assert word in (ECHO, "NO EFFECT")


def test_without_rows_nothing_is_judged_and_the_model_is_not_run(tiny, monkeypatch):
    monkeypatch.setattr(type(tiny.model), "forward", None)
    found = inspect(tuned(tiny), tiny)
    assert found.verdict.word == NOT_JUDGED
    assert (found.ladder, found.importance) == (None, None)
    assert lines(found)[0].startswith("NOT JUDGED: No rows were given")


def test_too_few_rows_are_measured_but_not_judged(tiny):
    found = inspect(tuned(tiny), tiny, VALUES[:8])
    shown = lines(found)
    assert shown[1].startswith("NOT JUDGED: 8 rows were given")
    assert any(line.startswith("soft prompt") for line in shown)
    assert not any("None" in line for line in shown)


def test_a_new_measure_is_one_line_in_the_catalogue(tiny, monkeypatch):
    """JSON, page and terminal show a measure that none of them knows."""

    def measure(subject, earlier):
        columns = {"position": "from 0", "twice": "twice the position, 'of' <chance>"}
        table = Table(columns, [{"position": p, "twice": 2 * p} for p in range(len(subject.shown_PH))])
        assert len(earlier["decoding"].table) == 15
        return Measured(
            name="doubles",
            title="Doubles & more",
            how="Twice the position.",
            table=table,
            chart=Bars("doubled <positions>", [Bar([str(p)], 2.0 * p) for p in range(5)]),
            lines=["doubled up to 8"],
            findings={"largest double": "<8>"},
        )

    monkeypatch.setitem(catalogue.MEASURES, "doubles", measure)
    found = inspect(tuned(tiny), tiny, k=3)
    assert found.doubles.table.column("twice") == [0, 2, 4, 6, 8]
    assert found.as_dict()["doubles"]["records"][4] == {"position": 4, "twice": 8}
    assert {"doubled up to 8", "largest double: <8>"} <= set(lines(found))
    text = page(found)
    assert '<h2>Doubles &amp; more</h2><figure id="doubles"><figcaption>Twice the position.</figcaption><svg ' in text
    assert 'aria-label="doubled &lt;positions&gt;"' in text
    assert "<dt>largest double</dt><dd>&lt;8&gt;</dd>" in text
    assert 'title="twice the position, &#x27;of&#x27; &lt;chance&gt;">twice</th>' in text


def test_measures_are_attributes_of_a_report(report, tiny):
    assert report.ladder is report.measures["ladder"]
    assert inspect(tuned(tiny), tiny).importance is None
    with pytest.raises(AttributeError, match="a report has no 'ladders'"):
        _ = report.ladders


def test_results_that_come_later_are_shown_behind_the_others(report):
    table = Table({"text": "a text"}, [{"text": "so it is"}])
    later = report.with_measures(Measured(name="words", title="In words", how="A text.", table=table))
    assert list(later.measures) == [*report.measures, "words"]
    assert later.words is later.measures["words"]
    assert later.as_dict()["words"] == table.as_dict()
    text = page(later)
    assert text.index('<figure id="words">') < text.index('<details id="specialists">')  # it was asked for
    assert '<td data-label="text">so it is</td>' in text


def test_the_vocabulary_is_made_once(tiny, monkeypatch):
    made = []
    monkeypatch.setattr(Vocabulary, "of", lambda backbone: made.append(backbone) or original(backbone))
    inspect(tuned(tiny), tiny, VALUES[:8])
    assert made == [tiny]


def test_badges():
    record = {"is_init": True, "is_hub": True, "flags": ["byte"]}
    assert badges(record) == ["INIT", "HUB", "GLITCH"]
    assert badges({"is_init": False, "is_hub": False, "flags": ["special", "duplicate"]}) == []


def test_rows_for_a_prompt_without_a_task_are_refused(tiny):
    with pytest.raises(PromptError, match="rows for a prompt without a task; expected no rows"):
        inspect(SoftPrompt(torch.randn(5, tiny.width)), tiny, VALUES)


def test_inspect_is_part_of_the_public_face(tiny):
    assert ptuning.inspect is inspect


def test_run_is_inspected_from_the_command_line(run_config: Path, tmp_path: Path, capsys) -> None:
    directory = train(RunConfig.from_yaml(run_config)).directory
    capsys.readouterr()
    data, html = ["--data", str(tmp_path / "test.csv")], tmp_path / "report.html"
    assert cli.main(["inspect", str(directory), *data, "--html", str(html), "--human", "good"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split(":")[0] in WORDS
    assert f"saved: {html}" in out
    assert html.read_text().startswith("<!doctype html>")
    assert cli.main(["inspect", str(directory), *data, "--json", "--max-rows", "10"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert {record["rows"] for record in plain["ladder"]["table"]["records"]} == {10, 20}
    assert plain["trajectory"]["records"][0]["step"] == 0
    assert len(plain["trajectory"]["records"]) >= 5


def test_command_asks_for_words_and_for_waywardness(run_config: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("ptuning.inspection.measures.wayward.Settings.max_steps", 2)
    directory = str(train(RunConfig.from_yaml(run_config, ["--train.max_steps=2"])).directory)
    capsys.readouterr()
    data = ["--data", str(tmp_path / "test.csv"), "--max-rows", "8"]
    assert cli.main(["inspect", directory, *data, "--verbalise", "--wayward", " a good film", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["verbalise"]["records"][0]["prompt"] == "soft prompt"
    assert len(plain["wayward"]["records"]) == 3
    assert cli.main(["inspect", directory, *data, "--verbalise"]) == 0
    assert "random directions of the same norms" in capsys.readouterr().out


def test_without_rows_only_the_embeddings_are_loaded(run_config: Path, capsys, monkeypatch) -> None:
    directory = str(train(RunConfig.from_yaml(run_config, ["--train.max_steps=2"])).directory)
    assert cli.main(["inspect", directory, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)["decoding"]["records"]
    monkeypatch.setattr(Backbone, "from_pretrained", None)
    assert cli.main(["inspect", directory, "--json"]) == 0
    part = json.loads(capsys.readouterr().out)["decoding"]["records"]
    assert [(each["id"], each["p"]) for each in part] == [(each["id"], each["p"]) for each in whole]


def test_what_would_fail_late_is_refused_first(run_config: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    directory = str(train(RunConfig.from_yaml(run_config, ["--train.max_steps=2"])).directory)
    monkeypatch.setattr("ptuning.inspection.report.inspect", None)
    data = ["--data", str(tmp_path / "test.csv")]
    capsys.readouterr()
    for options, message in (
        (["--html", str(tmp_path)], f"--html {tmp_path}, a directory; expected a file"),
        (["--html", str(tmp_path / "test.csv" / "a.html")], "test.csv/a.html cannot be written"),
        (["--html", "/proc/none/a.html"], "/proc/none/a.html cannot be written (No such file or directory)"),
        ([*data, "--wayward", ""], "--wayward ''; expected a text of one token or more"),
    ):
        assert cli.main(["inspect", directory, *options]) == 2
        assert message in capsys.readouterr().err
    prompt = SoftPrompt.load(directory)
    foreign = dataclasses.replace(prompt, training={}).save(tmp_path / "foreign")
    assert cli.main(["inspect", str(foreign), *data, "--wayward", "a"]) == 2
    assert "which names no training rows; expected such rows" in capsys.readouterr().err


def test_run_that_is_none_or_anothers_is_refused(tiny, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="which holds no snapshots; expected a training run's directory"):
        inspect(tuned(tiny), tiny, run=tmp_path)
    RunDirectory(tmp_path).save_snapshot(0, torch.randn(3, tiny.width))
    with pytest.raises(PromptError, match="a run of 3 virtual tokens; expected the prompt's 5"):
        inspect(tuned(tiny), tiny, run=tmp_path)


def broken_run(run_config: Path) -> tuple[str, Path]:
    """A prompt in its run, one of whose snapshots is broken."""
    directory = train(RunConfig.from_yaml(run_config, ["--train.max_steps=4"])).directory
    snapshot = directory.parent / "checkpoints" / "prompts" / "00000003.safetensors"
    assert snapshot.exists()
    snapshot.write_bytes(b"no tensor")
    return str(directory), snapshot


def test_broken_snapshot_of_a_run_that_is_not_given_costs_the_trajectory_alone(run_config, capsys, caplog) -> None:
    directory, snapshot = broken_run(run_config)
    capsys.readouterr()
    assert cli.main(["inspect", directory, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["trajectory"] is None
    assert len(plain["decoding"]["records"]) == 20
    (record,) = [each for each in caplog.records if each.name.startswith("ptuning.inspection")]
    assert record.getMessage().startswith(f"no trajectory: snapshot {snapshot} is broken")
    assert "\n" not in record.getMessage()


def test_broken_snapshot_of_a_given_run_is_an_error(run_config, capsys) -> None:
    directory, snapshot = broken_run(run_config)
    capsys.readouterr()
    assert cli.main(["inspect", directory, "--run", str(snapshot.parents[2])]) == 2
    assert f"snapshot {snapshot} is broken" in capsys.readouterr().err


def test_run_is_found_without_reading_its_snapshots(run_config, monkeypatch, capsys) -> None:
    directory = train(RunConfig.from_yaml(run_config, ["--train.max_steps=2"])).directory
    whole, reads = RunDirectory.snapshots, []
    monkeypatch.setattr(RunDirectory, "snapshots", lambda run: reads.append(run.path) or whole(run))
    assert RunDirectory(directory.parent).has_snapshots
    assert not RunDirectory(directory).has_snapshots
    assert reads == []
    assert cli.main(["inspect", str(directory)]) == 0
    assert reads == [directory.parent]


def test_decodings_are_compared_from_the_command_line(run_config: Path, tmp_path: Path, capsys) -> None:
    directory = train(RunConfig.from_yaml(run_config, ["--train.max_steps=2"])).directory
    prompt = SoftPrompt.load(directory)
    same = dataclasses.replace(prompt, embeddings_PH=prompt.embeddings_PH.flip(0)).save(tmp_path / "same")
    question = dataclasses.replace(prompt.task, template="{prompt:4}is this good? {text}")
    other = dataclasses.replace(prompt, embeddings_PH=-prompt.embeddings_PH, task=question).save(tmp_path / "other")
    foreign = dataclasses.replace(prompt, embeddings_PH=torch.randn(4, 7), fingerprint=None).save(tmp_path / "foreign")
    capsys.readouterr()
    compared, html = ["--compare", str(same), "--compare", str(other)], tmp_path / "report.html"
    assert cli.main(["inspect", str(directory), *compared, "--json", "--html", str(html)]) == 0
    one, two = json.loads(capsys.readouterr().out)["stability"]["records"]
    assert (one["pairs"], one["num_pairs"], one["overlap"], one["by_position"]) == ("same task", 1, 1.0, 0.0)
    assert (two["pairs"], two["num_pairs"], two["overlap"]) == ("other task", 2, 0.0)
    assert '<figure id="stability">' in html.read_text()
    assert cli.main(["inspect", str(directory), *compared]) == 0
    assert "'same task'" in capsys.readouterr().out
    assert cli.main(["inspect", str(directory), "--compare", str(foreign)]) == 2
    assert "width" in capsys.readouterr().err


def test_start_at_another_models_tokens_is_not_known(tiny) -> None:
    prompt = dataclasses.replace(tuned(tiny), fingerprint=tiny.fingerprint)
    assert inspect(prompt, tiny).decoding.table.column("init_token") != [None] * 25
    other = dataclasses.replace(tiny.fingerprint, architecture={"model_type": "other"})
    for changed in ({"fingerprint": other}, {"fingerprint": None, "init": {"token_ids": [10**6, *IDS[1:]]}}):
        found = inspect(dataclasses.replace(prompt, **changed), tiny)
        assert found.decoding.table.column("init_token") == [None] * 25
        assert found.verdict.share_init == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--human", "a"], "--human without --data; expected rows to measure it on"),
        (["--wayward", "a"], "--wayward without --data; expected rows to measure on"),
    ],
)
def test_what_needs_rows_says_so(run_config: Path, capsys, options, message) -> None:
    directory = str(train(RunConfig.from_yaml(run_config, ["--train.max_steps=2"])).directory)
    capsys.readouterr()
    assert cli.main(["inspect", directory, *options]) == 2
    assert message in capsys.readouterr().err


def test_prompt_without_a_task_has_no_rows(tmp_path: Path, model_directory: Path, capsys) -> None:
    backbone = Backbone.from_pretrained(model_directory, dtype="float32")
    prompt = SoftPrompt(Backbone.from_pretrained(model_directory).vocabulary_VH[IDS].float())
    directory = prompt.save(tmp_path / "prompt")
    assert backbone.width == prompt.width
    data = write_csv(tmp_path / "rows.csv", [{"text": "a", "label": "b"}])
    arguments = ["inspect", str(directory), "--model", str(model_directory), "--data", str(data)]
    assert cli.main(arguments) == 2
    assert "which names no task" in capsys.readouterr().err


def test_a_task_of_several_slots_is_read_slot_by_slot(tiny, report):
    assert report.ladder.text.count(" | ") == 1
    assert TASK.template.count("{prompt:") == 2
