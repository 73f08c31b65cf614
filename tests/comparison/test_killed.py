"""A comparison whose process is killed again and again, at any moment, ends as one that was left alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NUM_KILLS = 5
WAYS = "zero-shot,tf-idf,features,prompt-tuning,output-layers,lora"
FORKER = """
import json, os, random, signal, sys, time
import peft, sklearn.feature_extraction.text, sklearn.linear_model, sklearn.model_selection
import ptuning.comparison.run
from ptuning.cli.main import main

def begun(folder):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main([*arguments, "--train.output_dir", folder]))
    return child

def used(child):  # seconds of the CPU, which do not depend on what else the machine does; of one that has ended: no end
    with open(f"/proc/{child}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    if fields[0] == "Z":
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

folder, num_kills, *arguments = sys.argv[1:]
_, status, usage = os.wait4(begun(f"{folder}/whole"), 0)
assert status == 0
whole, chance, statuses = usage.ru_utime + usage.ru_stime, random.Random(0), []
for _ in range(int(num_kills)):
    child, limit = begun(f"{folder}/killed"), whole * chance.uniform(0.04, 0.24)
    while used(child) < limit:
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    statuses.append(len([1 for _, _, files in os.walk(f"{folder}/killed") if "result.json" in files]))
statuses.append(os.waitstatus_to_exitcode(os.waitpid(begun(f"{folder}/killed"), 0)[1]))
print(json.dumps(statuses))
"""


def told(folder: Path) -> dict[str, Any]:
    """What the comparison says, but for times and memory."""
    found: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    for way in found["ways"].values():
        for name in ("seconds", "memory_bytes", "milliseconds", "rows_per_second"):
            del way["costs"][name]
    del found["rules_of_thumb"]  # two of them name seconds
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the time that a process has used is read from /proc")
def test_it_ends_as_one_that_was_left_alone(run_config: Path, tmp_path: Path) -> None:
    arguments = ["compare", "--config", str(run_config), "--ways", WAYS, "--quick", "--train.save_steps", "2"]
    command = [sys.executable, "-c", FORKER, str(tmp_path), str(NUM_KILLS), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *killed, last = json.loads(done.stdout)
    assert killed[::2] == [-9] * NUM_KILLS
    assert killed[-1] > 0  # a later process goes on from what an earlier one did
    assert killed[1::2] == sorted(killed[1::2])
    assert last == 0
    assert told(tmp_path / "killed") == told(tmp_path / "whole")
