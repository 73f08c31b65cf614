"""Runs a whole small training, in this process or on several, and reads what it logged."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

from ptuning.config.run import RunConfig
from ptuning.evaluation.metrics import RowScores
from ptuning.training import evaluator
from ptuning.training.results import TrainResult
from ptuning.training.run import train


def trained(config: Path, *overrides: str, resume: bool = False) -> TrainResult:
    return train(RunConfig.from_yaml(config, overrides), resume)


def log(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def launched(
    *arguments: str, num_processes: int = 2, script: Path = REPOSITORY / "scripts" / "train.py"
) -> subprocess.CompletedProcess[str]:
    """`scripts/train.py` or another script on many processes, which are ended if they hang."""
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={num_processes}", "--master_port=0", "--standalone"]
    command = [sys.executable, *launcher, str(script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=150)
        except subprocess.TimeoutExpired:
            process.terminate()  # the launcher ends its processes
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def worsen_every_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the rows' answers less likely each time that rows are scored in training."""
    real, worse = evaluator.score_rows, iter(range(1, 100))

    def worsening(*arguments: object) -> RowScores:
        scores = real(*arguments)  # type: ignore[arg-type]
        return dataclasses.replace(scores, log_probs_N=torch.full_like(scores.log_probs_N, -100 * next(worse)))

    monkeypatch.setattr(evaluator, "score_rows", worsening)
