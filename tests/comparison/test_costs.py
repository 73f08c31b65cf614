"""Costs are those of the way that is measured."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from small import rows

from ptuning.comparison.costs import MemoryMeter, speed_of
from ptuning.comparison.protocol import Fitted
from ptuning.data import Row

MEGABYTE = 1 << 20


class Slow(Fitted):
    """Takes 20 ms a call and 1 ms a row."""

    def label_scores(self, rows: Sequence[Row]) -> torch.Tensor:
        time.sleep(0.02 + 0.001 * len(rows))
        return torch.zeros(len(rows), 2)

    def save(self, directory: Path) -> None:
        (directory / "inside").mkdir()
        (directory / "inside" / "weights").write_bytes(b"0" * 1234)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_is_what_was_added_at_most() -> None:
    meter = MemoryMeter(torch.device("cpu"))
    held = torch.ones(64 * MEGABYTE // 4)
    del held
    added = meter.added_bytes
    assert added is not None
    assert 60 * MEGABYTE < added < 90 * MEGABYTE
    again = MemoryMeter(torch.device("cpu")).added_bytes
    assert again is not None
    assert again < 10 * MEGABYTE


def test_speed_is_that_of_one_request_and_of_32_rows() -> None:
    speed = speed_of(Slow().label_scores, rows("validation"), repeats=2)
    assert 20 < speed.milliseconds < 40
    assert 350 < speed.rows_per_second < 32 / 0.052


def test_bytes_are_those_of_all_files(tmp_path: Path) -> None:
    fitted = Slow()
    fitted.save(tmp_path)
    assert fitted.bytes_to_ship(tmp_path) == 1234
