"""`ptuning export --to vllm` and `ptuning predict --server`: the same answers, and no row is lost or doubled."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import write_csv
from fake_vllm import FakeVLLM
from families import tiny_backbone

from ptuning.cli.main import main
from ptuning.data.task import Task
from ptuning.export.vllm import server as server_module
from ptuning.prompts.soft_prompt import SoftPrompt

LABELS = {"negative": " negative", "positive": " positive"}
ROWS = [{"id": str(i), "text": f"film {i} was {'very ' * i}dull", "label": "?"} for i in range(12)]
JOURNAL = "answers.jsonl.answers.jsonl"


@pytest.fixture
def server(tmp_path: Path, model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVLLM]:
    """A folder with two exported prompts and rows, and a server of their base."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setattr(server_module, "_FIRST_PAUSE", 0.01)
    backbone, drawn = tiny_backbone(), torch.randn(2, tiny_backbone().width)
    for name, task in (
        ("labels", Task("{prompt:2}{text}", verbalizer=LABELS)),
        ("words", Task("{prompt:2}{text} is", " {x}")),
    ):
        SoftPrompt(drawn, task, str(model_directory), backbone.fingerprint).save(tmp_path / name)
    write_csv(tmp_path / "rows.csv", ROWS)
    assert main(["export", "labels", "words", "--to", "vllm", "--output", "out", "--dtype", "float32"]) == 0
    with FakeVLLM(backbone.model, backbone.tokenizer) as fake:
        yield fake


def asked(server: FakeVLLM, *more: str, name: str = "labels") -> list[str]:
    return ["predict", "out", "--server", server.url, "--name", name, *more]


def to_file(server: FakeVLLM, *more: str) -> list[str]:
    return asked(server, "--data", "rows.csv", "--output", "answers.jsonl", *more)


def test_the_export_says_how_a_server_is_started(
    server: FakeVLLM, model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["export", "labels", "--to", "vllm", "--output", "again"]) == 0
    assert f"vllm serve {model_directory} --enable-prompt-embeds --dtype float32" in capsys.readouterr().out
    assert main(["export", "labels", "--to", "vllm", "--output", "again", "--dtype", "bfloat16", "--json"]) == 0
    told = {"directory": "again", "base": str(model_directory), "dtype": "bfloat16", "prompts": ["labels"]}
    assert json.loads(capsys.readouterr().out) == told


def test_answers_are_those_without_a_server(server: FakeVLLM, capsys: pytest.CaptureFixture[str]) -> None:
    for name, more in (("labels", []), ("words", ["--max-new-tokens", "6"])):
        texts = ["--input", "a good film", "--input", "dull", *more]
        capsys.readouterr()
        assert main(["predict", name, *texts, "--dtype", "float32"]) == 0
        expected = capsys.readouterr().out
        assert main(asked(server, *texts, name=name)) == 0
        assert capsys.readouterr().out == expected
    assert main(to_file(server)) == 0
    assert main(["predict", "labels", "--data", "rows.csv", "--output", "own.jsonl", "--dtype", "float32"]) == 0
    found, own = (
        [json.loads(line) for line in Path(f).read_text().splitlines()] for f in ("answers.jsonl", "own.jsonl")
    )
    for each, other in zip(found, own, strict=True):
        assert each.pop("probabilities") == pytest.approx(other.pop("probabilities"), abs=1e-5)
        assert each == other
    assert not Path(JOURNAL).exists()


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.csv"])
def test_a_run_that_a_server_left_is_resumed_without_a_row_lost_or_doubled(
    server: FakeVLLM, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = asked(server, "--data", "rows.csv", "--output", name, "--concurrency", "2")
    server.dies_after = 1 + 5  # the probes, and five rows
    capsys.readouterr()
    assert main(command) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("ptuning: ")]
    assert "7 of 12 rows unanswered (rows " in line
    assert f"the others' answers are in {name}.answers.jsonl, and --resume asks for these rows only" in line
    assert not Path(name).exists()
    journal = Path(f"{name}.answers.jsonl")
    kept = [json.loads(each)["row"] for each in journal.read_text().splitlines()[1:]]
    assert len(kept) == len(set(kept)) == 5
    server.dies_after = 10**9
    assert main(command) == 2
    assert "the answers of a run that has not ended; expected none, or --resume" in capsys.readouterr().err
    with journal.open("a") as file:
        file.write('{"row": 11, "answer": {"label": "posi')  # a run that was killed while it wrote
    num_before = len(server.asked)
    assert main([*command, "--resume"]) == 0
    assert len(server.asked) - num_before == 1 + 7
    assert main(["predict", "labels", "--data", "rows.csv", "--output", f"own-{name}", "--dtype", "float32"]) == 0
    own = Path(f"own-{name}").read_text().splitlines()
    lines = Path(name).read_text().splitlines()
    assert len(lines) == len(own)
    assert [each[:30] for each in lines] == [each[:30] for each in own]
    assert not journal.exists()


def test_a_journal_of_something_else_is_refused(server: FakeVLLM, capsys: pytest.CaptureFixture[str]) -> None:
    server.dies_after = 3
    assert main(to_file(server)) == 2
    before = Path(JOURNAL).read_text()
    write_csv(Path("rows.csv"), ROWS[1:])
    capsys.readouterr()
    assert main(to_file(server, "--resume")) == 2
    assert "which answers other rows, another prompt or other settings" in capsys.readouterr().err
    assert Path(JOURNAL).read_text() == before
    Path(JOURNAL).write_text("nonsense\n")
    assert main(to_file(server, "--resume")) == 2
    assert "which is broken" in capsys.readouterr().err


def test_resuming_what_was_not_begun_begins_it(server: FakeVLLM) -> None:
    assert main(to_file(server, "--resume")) == 0
    assert len(Path("answers.jsonl").read_text().splitlines()) == len(ROWS)


def test_the_servers_key_comes_from_the_environment(server: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    server.api_key = "secret"
    assert main(asked(server, "--input", "a film")) == 2
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert main(asked(server, "--input", "a film")) == 0


def test_mistakes_are_told_in_one_line(server: FakeVLLM, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for arguments, message in (
        (["predict", "labels", "--input", "a", "--resume"], "--resume without --server; expected both"),
        (["predict", "labels", "--input", "a", "--name", "b"], "--name without --server; expected both"),
        (asked(server, "--input", "a", "--resume"), "--resume without --output"),
        (asked(server, "--input", "a", name="none"), "prompt 'none'; expected one of labels, words"),
        (["predict", "labels", "--server", server.url, "--input", "a"], "labels has no ptuning_vllm.json; expected"),
        (["predict", "out", "--server", "nowhere", "--input", "a"], "the address 'nowhere'; expected one such as http"),
        (asked(server, "--input", "film " * 200), "at most"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
