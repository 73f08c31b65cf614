"""Small drawings as SVG text: bars with intervals, points with arrows, lines. Colours follow the page's light or dark.

Knows nothing of prompts. Every text is escaped here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_LABEL, _ROW, _WIDTH = 160, 26, 400  # so narrow that letters stay legible on a phone


@dataclass(frozen=True)
class Bar:
    """A bar of a chart."""

    label: str
    """What it is of."""
    value: float
    """Where it ends."""
    low: float | None = None
    """Where its interval begins."""
    high: float | None = None
    """Where it ends."""
    is_marked: bool = False
    """Whether it is drawn in the accent colour."""


def bars(title: str, chart: Sequence[Bar]) -> str:
    """Horizontal bars, one below the other, from 0."""
    ends = [each for bar in chart for each in (bar.value, bar.low, bar.high, 0.0) if each is not None]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return round(_LABEL + (value - low) / span * (_WIDTH - _LABEL - 50), 1)

    parts = []
    for i, bar in enumerate(chart):
        y, left, right = 8 + i * _ROW, min(x(0.0), x(bar.value)), max(x(0.0), x(bar.value))
        parts.append(f'<text x="{_LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(bar.label)}</text>')
        kind = "bar marked" if bar.is_marked else "bar"
        parts.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{max(right - left, 1):.1f}" height="18"/>')
        end = right
        if bar.low is not None and bar.high is not None:
            caps = "".join(f"M{x(each)} {y + 4}v10" for each in (bar.low, bar.high))
            parts.append(f'<path class="interval" d="M{x(bar.low)} {y + 9}H{x(bar.high)}{caps}"/>')
            end = max(end, x(bar.high))
        parts.append(f'<text class="number" x="{end + 6}" y="{y + 13}">{bar.value:.3f}</text>')
    return _svg(title, _WIDTH, 16 + len(chart) * _ROW, "".join(parts))


def cloud(
    title: str,
    tokens: Sequence[Sequence[float]],
    ends: Sequence[Sequence[float]],
    starts: Sequence[Sequence[float] | None],
) -> str:
    """Dots for tokens; for each virtual token a dot, and an arrow from where it began."""
    width, height = _WIDTH, 300
    points = [*tokens, *ends, *(each for each in starts if each is not None)]
    (left, right), (bottom, top) = ((min(p[k] for p in points), max(p[k] for p in points)) for k in (0, 1))

    def place(point: Sequence[float]) -> tuple[float, float]:
        across = (point[0] - left) / ((right - left) or 1.0)
        up = (point[1] - bottom) / ((top - bottom) or 1.0)
        return round(12 + across * (width - 24), 1), round(height - 12 - up * (height - 24), 1)

    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    parts = [f'<defs>{head}<path class="head" d="M0 0L8 4L0 8z"/></marker></defs>']
    parts += ['<circle class="token" cx="{}" cy="{}" r="1.6"/>'.format(*place(point)) for point in tokens]
    for number, (end, start) in enumerate(zip(ends, starts, strict=True)):
        x, y = place(end)
        if start is not None:
            (x0, y0) = place(start)
            parts.append(f'<path class="arrow" d="M{x0} {y0}L{x} {y}" marker-end="url(#head)"/>')
        parts.append(f'<circle class="virtual" cx="{x}" cy="{y}" r="4"/><text x="{x + 6}" y="{y + 4}">{number}</text>')
    return _svg(title, width, height, "".join(parts))


def curves(title: str, x_values: Sequence[float], series: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """Lines over the same steps, each on its own scale in a strip of its own."""
    strip, parts = 90, list[str]()
    first, last = min(x_values), max(x_values)
    for k, (name, values) in enumerate(series):
        known = [(x, y) for x, y in zip(x_values, values, strict=True) if y is not None]
        if not known:
            continue
        low, high, base = min(y for _, y in known), max(y for _, y in known), (k + 1) * strip - 12

        def place(x: float, y: float, low: float = low, high: float = high, base: float = base) -> str:
            across = (x - first) / ((last - first) or 1.0) * (_WIDTH - _LABEL - 30)
            return f"{_LABEL + across:.1f} {base - (y - low) / ((high - low) or 1.0) * (strip - 34):.1f}"

        label = f"{escape(name)} {low:.3g} to {high:.3g}"
        parts.append(f'<text x="{_LABEL - 12}" y="{base - 20}" text-anchor="end">{label}</text>')
        parts.append(f'<path class="curve" d="M{"L".join(place(*each) for each in known)}"/>')
        parts += ['<circle class="virtual" cx="{}" cy="{}" r="3"/>'.format(*place(*each).split()) for each in known]
    return _svg(title, _WIDTH, len(series) * strip, "".join(parts))


def _svg(title: str, width: int, height: int, inside: str) -> str:
    label = escape(title, quote=True)
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height}"><title>{label}</title>{inside}</svg>'
