"""Whatever standard output and error are, a command ends in order; nothing it prints steers a terminal."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tqdm import tqdm

from ptuning.cli import main as cli
from ptuning.cli.streams import plain_streams
from ptuning.config.run import RunConfig

HOSTILE = "\x1b]0;title\x07\r\x9b31m\u202e"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file whose labels are beyond ASCII and steer a terminal."""
    lines = ["text,label", *(f"film {i},{'schön' if i % 2 else HOSTILE}" for i in range(20))]
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "rows.csv"


def run(rows: Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "ptuning", "init", str(rows), "--output", str(rows.with_suffix(".yaml"))]
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "check": False, **options}
    return subprocess.run(command, **given)  # type: ignore[call-overload]


def test_controls_are_printed_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with plain_streams():
        print(f"a\tb{HOSTILE}")
        print(f"\rbar{HOSTILE}", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    out, err = capsys.readouterr()
    assert out == "a\tb\\x1b]0;title\\x07\\x0d\\x9b31m\\u202e\n"
    assert err == "\rbar\\x1b]0;title\\x07\r\\x9b31m\\u202e\n"


def test_two_progress_bars_stay_on_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with plain_streams(), tqdm(total=2, mininterval=0, file=sys.stderr) as outer:
        for _ in range(2):
            with tqdm(total=2, mininterval=0, leave=False, file=sys.stderr) as inner:
                inner.update()
            outer.update()
    err = capsys.readouterr().err
    assert "\x1b[A" in err
    assert "\\x1b" not in err


def test_labels_do_not_set_the_windows_title(rows: Path) -> None:
    found = run(rows)
    assert found.returncode == 0
    assert not {0x1B, 0x07, 0x0D} & set(found.stdout + found.stderr)


@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0"}])
def test_what_cannot_be_encoded_is_escaped(rows: Path, environment: dict[str, str]) -> None:
    renamed = rows.rename(rows.with_name("schön.csv"))
    found = run(renamed, env={**os.environ, **environment})
    assert found.returncode == 0
    assert b"Traceback" not in found.stderr
    assert b"sch" in found.stdout + found.stderr


def test_a_name_that_is_no_text_is_told(rows: Path) -> None:
    found = run(rows.rename(os.fsdecode(os.fsencode(rows.parent) + b"/\xff.csv")))
    assert found.returncode == 2
    assert b"\\udcff.csv, whose name is no text; expected a name in UTF-8. Rename the file.\n" in found.stderr


def test_a_name_of_several_lines_stays_in_its_comment(rows: Path) -> None:
    renamed = rows.rename(rows.with_name("a\nb.csv"))
    assert run(renamed).returncode == 0
    assert RunConfig.from_yaml(renamed.with_suffix(".yaml")).data.train == str(renamed)


CLOSED: dict[str, Callable[[], None]] = {
    "stdout": lambda: os.close(1),
    "stderr": lambda: os.close(2),
    "all": lambda: os.closerange(0, 3),
}


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_streams_harm_nothing(rows: Path, closed: str) -> None:
    found = run(rows, preexec_fn=CLOSED[closed])
    assert found.returncode == 0
    assert rows.with_suffix(".yaml").read_text().startswith("#")
    assert b"Traceback" not in found.stderr


def test_a_full_output_is_told(rows: Path) -> None:
    with open("/dev/full", "wb") as full:
        found = run(rows, stdout=full)
        assert found.returncode == 2
        assert found.stderr.count(b"\n") == 1
        assert b"standard output cannot be written (No space left on device)" in found.stderr
        assert run(rows.rename(rows.with_name("b.csv")), stderr=full).returncode == 0


def test_a_reader_that_has_gone_ends_quietly(rows: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    found = run(rows, stdout=writing)
    os.close(writing)
    assert (found.returncode, found.stderr) == (0, b"")


def test_termination_is_told_as_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "_parser", lambda: signal.raise_signal(signal.SIGTERM))
    assert cli.main(["help"]) == 130
    assert capsys.readouterr().err == "ptuning: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before
