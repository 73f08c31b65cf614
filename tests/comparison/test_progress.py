"""The time that is left follows from what parts took, each way for itself."""

from pathlib import Path

import pytest
from small import ROWS, config_in

import ptuning
from ptuning.comparison.parts import Part
from ptuning.comparison.progress import seconds_left, told
from ptuning.model import Backbone


def test_each_way_takes_as_long_as_it_did_and_an_unknown_one_as_long_as_all() -> None:
    taken = {Part("zero-shot", 0, None): 2.0, Part("lora", 0, None): 100.0, Part("lora", 1, None): 120.0}
    left = [Part("lora", 2, None), Part("zero-shot", 1, None), Part("all-weights", 0, None)]
    assert seconds_left(left, taken, ()) == 110 + 2 + 74
    assert seconds_left(left, taken, ["lora"]) == 2 + 74
    assert seconds_left([], taken, ()) == 0
    assert seconds_left(left, {}, ()) is None
    assert [told(each) for each in (None, 42.4, 600.0)] == ["", ", about 42 s left", ", about 10 min left"]


def test_the_bar_tells_it(backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ways = ["zero-shot", "output-layers"]
    ptuning.compare(config_in(tmp_path, compare__ways=ways, compare__quick=True), rows=ROWS, backbone=backbone)
    shown = capsys.readouterr().err
    assert "comparing: 1 of 2 parts" in shown
    assert "output-layers, seed 0, about " in shown
