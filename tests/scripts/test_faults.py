"""A sample of the campaign of faults, and that the campaign sees what is not clean."""

import subprocess
import sys
from pathlib import Path

import pytest
from campaign.cases import KINDS, Case
from conftest import REPOSITORY

JUDGED = """
import os, signal, sys, tempfile
from pathlib import Path
from campaign import world as module
from campaign.cases import Case, _PREDICT
module.MOST_SECONDS = 3.0
original = module.main
def main(arguments):
    rows = Path("rows.jsonl").read_text()
    if "hang" in rows: import time; time.sleep(60)
    if "crash" in rows: raise KeyError("a bug")
    if "two lines" in rows:
        print("ptuning: one", file=sys.stderr); print("ptuning: two", file=sys.stderr); return 2
    return original(arguments)
module.main = main
with tempfile.TemporaryDirectory() as folder:
    world = module.World(Path(folder))
    for word in ("hang", "crash", "two lines", "other rows"):
        def spoil(place):
            (place / "rows.jsonl").write_text('{"text": "%s", "label": "good"}' % word)
        found = world.outcome(Case("rows", word, _PREDICT, spoil))
        print(found["is_clean"], found["what"])
    print(world.outcome(Case("rows", "other rows", _PREDICT, spoil, may_change=True))["what"])
    print(world.outcome(Case("rows", "the same", _PREDICT, lambda place: None))["what"])
    child = os.fork()
    if child == 0:
        module.tqdm.get_lock().acquire()  # as in a process that is killed while it draws a bar
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    print(world.outcome(Case("rows", "the same again", _PREDICT, lambda place: None))["what"])
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=REPOSITORY / "scripts"
    )


def test_two_hundred_cases_are_clean(tmp_path: Path) -> None:
    result = run("faults.py", "--cases", "200", "--results", str(tmp_path / "faults.jsonl"))
    assert result.returncode == 0, result.stderr[-2000:]
    table, _, why = result.stdout.partition("\n\n")
    assert "NO REASON" not in why
    assert "killed: it goes on to the same prompt and the same files" in why
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in table.splitlines()[2:]}
    assert set(rows) == set(KINDS)
    assert sum(int(cells[0]) for cells in rows.values()) == 200
    assert len((tmp_path / "faults.jsonl").read_text().splitlines()) > 150  # some cases are the same
    assert int(rows["killed"][2]) > 20


def test_what_is_not_clean_is_seen() -> None:
    result = run("-c", JUDGED)
    assert result.stdout.splitlines() == [
        "False it does not end within 3 s",
        "False KeyError: 'a bug'",
        "False refused",
        "False another answer without a word",
        "taken",
        "as before",
        "as before",
    ], result.stderr[-2000:]


@pytest.mark.parametrize("number", range(2 * len(KINDS)))
def test_a_case_follows_from_its_seed_and_number(number: int) -> None:
    one, same, other = Case.of(0, number), Case.of(0, number), Case.of(1, number)
    assert (one.kind, one.name, one.command) == (same.kind, same.name, same.command)
    assert one.name != other.name or one.kind in ("no file", "setting")
