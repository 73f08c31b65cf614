"""Runs `ptuning train` in a process and kills it with SIGKILL at one point.

The points: `step`, after a step; `save`, while a checkpoint is being written and before it is renamed into place;
`evaluate`, in an evaluation.
"""

import os
import subprocess
import sys

KILLER = """
import os, signal, sys
from ptuning.cli import main as cli
from ptuning.training import evaluator, run_directory
from ptuning.training.loop import Loop
point, number, *arguments = sys.argv[1:]
number = int(number)
def kill(): os.kill(os.getpid(), signal.SIGKILL)
step, save, evaluate = Loop._step, run_directory.torch.save, evaluator.score_rows
def killing_step(self):
    record = step(self)
    if point == "step" and self.progress.step == number: kill()
    return record
def killing_save(state, path):
    save(state, path)
    if point == "save" and state["progress"]["step"] == number: kill()
def killing_evaluate(*arguments, **options):
    global number
    number -= point == "evaluate"
    if point == "evaluate" and number == 0: kill()
    return evaluate(*arguments, **options)
Loop._step, run_directory.torch.save, evaluator.score_rows = killing_step, killing_save, killing_evaluate
sys.exit(cli.main(arguments))
"""


def killed(point: str, number: int, *arguments: str) -> int:
    """The exit status of a run killed at the `number`-th step, checkpoint's step or evaluation."""
    command = [sys.executable, "-c", KILLER, point, str(number), "train", *arguments]
    return subprocess.run(
        command, capture_output=True, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ).returncode
