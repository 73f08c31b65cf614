"""Labels of points stand where they cover neither points nor each other."""

import random
import re

import pytest

from ptuning.evaluation import Point, Points

LETTER, HEIGHT = 6.0, 9.0  # of the text, at least


@pytest.mark.parametrize("seed", range(5))
def test_labels_cover_neither_points_nor_each_other(seed: int) -> None:
    chance = random.Random(seed)
    points = [Point(f"a way {i}", 10 ** chance.uniform(0, 1), chance.uniform(0.5, 0.6), False) for i in range(9)]
    text = Points("points", "seconds", points).svg()
    dots = [(float(x), float(y)) for x, y in re.findall(r'<circle class="dot" cx="([\d.]+)" cy="([\d.]+)"', text)]
    labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(start|end)">(a way \d)</text>', text)
    assert len(dots) == len(labels) == 9
    boxes = []
    for x, y, anchor, label in labels:
        width = LETTER * len(label)
        left = float(x) - (width if anchor == "end" else 0)
        boxes.append((left, left + width, float(y) - HEIGHT, float(y)))
    for i, (left, right, top, bottom) in enumerate(boxes):
        assert not any(left < x < right and top < y < bottom for x, y in dots)
        for begin, end, high, low in boxes[:i]:
            assert right <= begin or end <= left or bottom <= high or low <= top


def test_large_numbers_of_an_axis_are_written_in_full() -> None:
    text = Points("points", "kB", [Point("a", 0.5, 0.5, False), Point("b", 4_194_304, 0.6, False)]).svg()
    assert ">4,194,304</text>" in text
    assert ">0.5</text>" in text
