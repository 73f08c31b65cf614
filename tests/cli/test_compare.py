"""`ptuning compare`: tables on stdout, JSON alone with --json, and one line for a mistake."""

import json
import re
from pathlib import Path

import pytest

from ptuning.cli.main import main


@pytest.fixture(autouse=True)
def in_its_folder(run_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_config.parent)


def test_it_prints_tables_and_json(run_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "--config", str(run_config), "--quick", "--ways", "zero-shot,tf-idf"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Take tf-idf: accuracy 1.000")
    assert "comparison.html" in printed.splitlines()[-1]
    assert main([*command, "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["recommendation"]["way"] == "tf-idf"
    assert (run_config.parent / "run" / "comparison.html").exists()


def test_help_and_the_whole_config_can_be_printed(run_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    assert "--compare.least_accuracy" in capsys.readouterr().out
    assert main(["compare", "--config", str(run_config), "--seeds", "5", "--print-config"]) == 0
    assert "  seeds: 5" in capsys.readouterr().out
    assert main(["compare", "--config", str(run_config), "--budget", "10m", "--print-config"]) == 0
    assert "  budget: 10m" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "ptuning compare without --config"),
        (["--config", "none.yaml"], "none.yaml does not exist"),
        (["--config", "config.yaml", "--ways", "telepathy"], "compare.ways: telepathy; expected some of zero-shot"),
        (["--config", "config.yaml", "--seeds", "0"], "compare.seeds: 0; expected from 1 to 20"),
        (
            ["--config", "config.yaml", "--budget", "soon"],
            "compare.budget: soon; expected a time such as 90s, 10m or 1h",
        ),
        (["--config", "config.yaml", "--budget", "0m"], "compare.budget: 0m; expected a time such as 90s, 10m or 1h"),
        (["--config", "config.yaml", "--rates", "many"], "compare.rates: 'many'; expected int"),
        (
            ["--config", "config.yaml", "--compare.least_accuracy=2"],
            "compare.least_accuracy: 2.0; expected from 0 to 1",
        ),
        (
            ["--config", "config.yaml", "--compare.most_milliseconds=0"],
            "most_milliseconds: 0.0; expected a number above",
        ),
        (["--config", "config.yaml", "--data.test", "none.csv"], "none.csv does not exist"),
        (["--config", "config.yaml", "--compare.documents", "none"], "compare.documents: none does not exist"),
        (["--config", "config.yaml", "--compare.quik=true"], "unknown setting compare.quik; expected compare.quick"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], match: str, capsys: pytest.CaptureFixture[str], run_config: Path
) -> None:
    assert main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"ptuning: [^\n]+; expected [^\n]+\.\n", err), err
    assert match in err
    assert not (run_config.parent / "run").exists()
