"""Charts as data, and each as SVG text: bars with intervals, points with arrows, curves.

Colours come from the page, light or dark. All text is escaped here. Knows nothing of prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_LABEL, _ROW, _WIDTH = 160, 26, 400  # narrow enough for letters to stay legible on a phone


@dataclass(frozen=True)
class Bar:
    """A bar of a chart, drawn from 0."""

    label: str
    """The text beside it."""
    value: float
    """Where the bar ends."""
    low: float | None = None
    """Lower end of its interval."""
    high: float | None = None
    """Upper end of its interval."""
    is_marked: bool = False
    """Whether it is drawn in the accent colour."""


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, one below the other."""

    title: str
    """What the bars show, for readers who cannot see them."""
    bars: Sequence[Bar]
    """The bars, from top to bottom."""

    def svg(self) -> str:
        """The chart as SVG text."""
        ends = [each for bar in self.bars for each in (bar.value, bar.low, bar.high, 0.0) if each is not None]
        low, high = min(ends), max(ends)
        span = (high - low) or 1.0

        def x(value: float) -> float:
            return round(_LABEL + (value - low) / span * (_WIDTH - _LABEL - 50), 1)

        parts = []
        for i, bar in enumerate(self.bars):
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
        return _svg(self.title, 16 + len(self.bars) * _ROW, "".join(parts))


@dataclass(frozen=True)
class Cloud:
    """Small dots in a plane, and numbered dots that arrows lead to."""

    title: str
    """What the dots show, for readers who cannot see them."""
    dots: Sequence[Sequence[float]]
    """The small dots, x and y."""
    ends: Sequence[Sequence[float]]
    """The numbered dots."""
    starts: Sequence[Sequence[float] | None]
    """Where the arrow to each numbered dot begins; None: no arrow."""

    def svg(self) -> str:
        """The chart as SVG text."""
        height = 300
        points = [*self.dots, *self.ends, *(each for each in self.starts if each is not None)]
        (left, right), (bottom, top) = ((min(p[k] for p in points), max(p[k] for p in points)) for k in (0, 1))

        def place(point: Sequence[float]) -> tuple[float, float]:
            across = (point[0] - left) / ((right - left) or 1.0)
            up = (point[1] - bottom) / ((top - bottom) or 1.0)
            return round(12 + across * (_WIDTH - 24), 1), round(height - 12 - up * (height - 24), 1)

        head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        parts = [f'<defs>{head}<path class="head" d="M0 0L8 4L0 8z"/></marker></defs>']
        for x, y in map(place, self.dots):
            parts.append(f'<circle class="token" cx="{x}" cy="{y}" r="1.6"/>')
        for number, (end, start) in enumerate(zip(self.ends, self.starts, strict=True)):
            x, y = place(end)
            if start is not None:
                x0, y0 = place(start)
                parts.append(f'<path class="arrow" d="M{x0} {y0}L{x} {y}" marker-end="url(#head)"/>')
            dot = f'<circle class="virtual" cx="{x}" cy="{y}" r="4"/>'
            parts.append(f'{dot}<text x="{x + 6}" y="{y + 4}">{number}</text>')
        return _svg(self.title, height, "".join(parts))


@dataclass(frozen=True)
class Curves:
    """Curves over the same steps, one below the other, each on its own scale."""

    title: str
    """What the curves show, for readers who cannot see them."""
    steps: Sequence[float]
    """The steps, which all curves share."""
    series: Sequence[tuple[str, Sequence[float | None]]]
    """Name and values of each curve; None where a step has no value."""

    def svg(self) -> str:
        """The chart as SVG text."""
        strip, parts = 90, list[str]()
        first, last = min(self.steps), max(self.steps)
        for k, (name, values) in enumerate(self.series):
            known = [(x, y) for x, y in zip(self.steps, values, strict=True) if y is not None]
            if not known:
                continue
            low, high, base = min(y for _, y in known), max(y for _, y in known), (k + 1) * strip - 12
            label = f"{escape(name)} {low:.3g} to {high:.3g}"
            parts.append(f'<text x="{_LABEL - 12}" y="{base - 20}" text-anchor="end">{label}</text>')
            places = []
            for x, y in known:
                across = (x - first) / ((last - first) or 1.0) * (_WIDTH - _LABEL - 30)
                up = (y - low) / ((high - low) or 1.0) * (strip - 34)
                places.append((f"{_LABEL + across:.1f}", f"{base - up:.1f}"))
            parts.append(f'<path class="curve" d="M{"L".join(f"{x} {y}" for x, y in places)}"/>')
            parts += [f'<circle class="virtual" cx="{x}" cy="{y}" r="3"/>' for x, y in places]
        return _svg(self.title, len(self.series) * strip, "".join(parts))


def _svg(title: str, height: int, inside: str) -> str:
    label = escape(title, quote=True)
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {height}"><title>{label}</title>{inside}</svg>'
