"""What a run says before and soon after it begins."""

import re
from pathlib import Path

import pytest
from running import trained

from ptuning.training.plan import told_duration


@pytest.mark.parametrize(
    ("seconds", "told"), [(44.4, "44 s"), (60, "1 min"), (3599, "1 h 0 min"), (290, "5 min"), (7800, "2 h 10 min")]
)
def test_a_duration_is_told_in_its_own_units(seconds: float, told: str) -> None:
    assert told_duration(seconds) == told


def test_the_time_that_is_left_is_told_once(
    run_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ptuning.training.run._LEAST_TOLD", 0.0)
    trained(run_config, "--train.logging_steps=3")
    err = capsys.readouterr().err
    assert err.count("evaluations apart") == 1
    assert re.search(r"step 6: about \d+ s for the other 6 steps, evaluations apart", err)


def test_a_short_run_tells_no_time(run_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(run_config, "--train.logging_steps=3")
    assert "evaluations apart" not in capsys.readouterr().err
