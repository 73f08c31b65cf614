"""Draws what was measured."""

import statistics
from typing import Any

from matplotlib import pyplot

NAMES = {"ours": "ptuning", "peft": "PEFT"}
COLOURS = {"ours": "#1b6ca8", "peft": "#c8553d"}
SHORT = {"float32": "fp32", "bfloat16": "bf16"}
BARS = {
    "train_tokens_per_second": "training\nuseful tokens/s",
    "step_bytes": "training\nGB above the model",
    "classify_rows_per_second": "classification\nrows/s",
    "first_token_seconds_8": "first token of 8 rows\nseconds",
}


def bench_plot(cases: list[dict[str, Any]], path: str) -> None:
    """Bars of both sides, a panel a measure, a pair a case."""
    figure, panels = pyplot.subplots(1, len(BARS), figsize=(3.2 * len(BARS), 3.4), layout="constrained")
    labels = [f"{SHORT[case['dtype']]}\nP={case['num_virtual']}" for case in cases]
    for axes, (what, title) in zip(panels, BARS.items(), strict=True):
        for i, side in enumerate(NAMES):
            values = [case[what][side] for case in cases]
            heights = [each / 1e9 if what == "step_bytes" else statistics.median(each) for each in values]
            places = [k + 0.4 * i for k in range(len(cases))]
            axes.bar(places, heights, 0.4, color=COLOURS[side], label=NAMES[side])
        axes.set_xticks([k + 0.2 for k in range(len(cases))], labels, fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def growth_plot(points: dict[str, dict[str, list[tuple[int, float, float]]]], path: str) -> None:
    """Seconds above, gigabytes below, a column a quantity."""
    figure, panels = pyplot.subplots(2, len(points), figsize=(3.2 * len(points), 5), layout="constrained", sharex="col")
    for column, (name, sides) in enumerate(points.items()):
        for side, measured in sides.items():
            x, seconds, num_bytes = zip(*measured, strict=True)
            style = {"color": COLOURS[side], "marker": "o", "markersize": 3, "label": NAMES[side]}
            panels[0][column].plot(x, seconds, **style)
            panels[1][column].plot(x, [each / 1e9 for each in num_bytes], **style)
        panels[1][column].set_xlabel(name)
    for axes in panels.flat:
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("seconds a step")
    panels[1][0].set_ylabel("GB above the model")
    panels[0][0].legend(frameon=False)
    figure.savefig(path, dpi=110)
