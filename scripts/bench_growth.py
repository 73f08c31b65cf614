#!/usr/bin/env python
"""How a training step's time and memory grow with virtual tokens, batch size, text and depth: ptuning and PEFT."""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from benchmark.sides import Case
from benchmark.turns import step_costs

GROWTH = {
    "num_virtual": ("virtual tokens", (1, 50, 100, 200, 400)),
    "batch_size": ("rows a batch", (4, 8, 16, 32, 64)),
    "num_text": ("tokens of text a row", (16, 32, 64, 128)),
    "num_layers": ("layers", (6, 12, 18, 24, 30)),
}


def main() -> None:
    """Measures each point once, fits lines, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="assets/smollm2-135m-instruct")
    parser.add_argument("--data", default="assets/movie_reviews/train.csv")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="everything that was measured; what it holds is not done again")
    parser.add_argument("--png", metavar="FILE", help="the plot")
    options = parser.parse_args()
    middle = Case(options.base, options.data, options.dtype, num_virtual=50, batch_size=16, num_text=32)
    saved = Path(options.json) if options.json else None
    found: dict[str, Any] = json.loads(saved.read_text()) if saved and saved.exists() else {}
    points: dict[str, dict[str, list[tuple[int, float, float]]]] = {}
    print("| per unit of | ptuning, ms | PEFT, ms | ptuning, MB | PEFT, MB |\n|---|---|---|---|---|")
    for field, (name, values) in GROWTH.items():
        for value in values:
            change: dict[str, Any] = {field: value}
            case = dataclasses.replace(middle, **change)
            if str(case) not in found:
                found[str(case)] = step_costs(case, options.rounds)
            for side, costs in found[str(case)].items():
                seconds = statistics.median(costs["seconds"])
                points.setdefault(name, {}).setdefault(side, []).append((value, seconds, costs["bytes"]))
            if saved:
                saved.write_text(json.dumps(found, indent=1))
        print(f"| {name} | " + " | ".join(_slopes(points[name])) + " |", flush=True)
    if options.png:
        from benchmark.plots import growth_plot

        growth_plot(points, options.png)


def _slopes(sides: dict[str, list[tuple[int, float, float]]]) -> list[str]:
    """Milliseconds, then megabytes, of one more: the slope of a line through the points, for each side."""
    fits = []
    for k, scale in ((1, 1e3), (2, 1e-6)):
        for side in ("ours", "peft"):
            x, y = [each[0] for each in sides[side]], [each[k] * scale for each in sides[side]]
            fits.append(f"{statistics.linear_regression(x, y).slope:.3g}")
    return fits


if __name__ == "__main__":
    main()
