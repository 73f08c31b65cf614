"""The public command's table: its cells are the checks' outcomes, and a failure is its exit status."""

import sys

import pytest
import table
from behaviours import BEHAVIOURS, Behaviour, NotApplicable


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One family and three behaviours: one that holds, one that does not, one that is of no use there."""

    def fails(system: object) -> None:
        raise AssertionError("off by 3")

    def is_of_no_use(system: object) -> None:
        raise NotApplicable("no window")

    checks = [BEHAVIOURS[2], Behaviour("x", "what fails", fails), Behaviour("y", "what is not there", is_of_no_use)]
    monkeypatch.setattr(table, "BEHAVIOURS", checks)
    monkeypatch.setattr(table, "FAMILIES", {"llama": {}})


@pytest.mark.usefixtures("small")
def test_table_tells_what_holds_and_what_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["table.py", "--peft"])
    assert table.main() == 1
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines() if line.startswith("llama")]
    assert lines == [["llama", "✓", "✗", "·"], ["llama", "✗", "✗", "·"]]  # ours, and PEFT's under padding
    assert "x what fails: fails on 1 of 1 families\n    llama: AssertionError: off by 3" in out


@pytest.mark.usefixtures("small")
def test_status_is_0_where_all_holds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["table.py"])
    monkeypatch.setattr(table, "BEHAVIOURS", [BEHAVIOURS[2]])
    assert table.main() == 0
    assert "PEFT" not in capsys.readouterr().out.replace("test", "")
