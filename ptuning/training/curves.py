"""Draws a run's learning curves, where matplotlib is installed.

Knows nothing of how a run is made. It uses no state of matplotlib that programs share.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptuning.files import whole_file

_LOSSES = {"loss": "training", "eval_loss": "validation"}  # key of the log -> the curve's name
_STYLES = {"training": ("C0", None), "validation": ("C1", ".")}  # name -> colour and marker


def draw_curves(records: Sequence[Mapping[str, Any]], to: Path) -> bool:
    """Draws loss and accuracy over the steps as a PNG file; whether it could: matplotlib may be missing.

    Args:
        records: The lines of metrics.jsonl.
        to: The file.

    Raises:
        FileError: When the file cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    first: Mapping[str, Any] = next((record for record in records if record["step"] == 0), {})
    bare, untrained = ("without the prompt", "--"), ("untrained", ":")
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    _draw(above, "loss (nats a token)", {name: _points(records, key) for key, name in _LOSSES.items()})
    _draw(below, "accuracy", {"validation": _points(records, "eval_accuracy")})
    for axes, key, (name, style) in (
        (above, "baseline_loss", bare),
        (below, "baseline_accuracy", bare),
        (below, "eval_accuracy", untrained),
    ):
        if first.get(key) is not None:
            axes.axhline(first[key], color="gray", linestyle=style, label=name)
    for axes in (above, below):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    below.set_xlabel("step")
    with whole_file(to) as beside:
        figure.savefig(beside, format="png", dpi=120)
    return True


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """Step and value, where there is one."""
    return [(record["step"], record[key]) for record in records if key in record]


def _draw(axes: Any, label: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Draws the curves that have points."""
    for name, points in curves.items():
        if points:
            color, marker = _STYLES[name]
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=name)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
