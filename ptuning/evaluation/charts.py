"""Charts as data, and each as SVG text: bars with intervals, points with arrows, curves.

Colours come from the page, light or dark. All text is escaped here. Knows nothing of prompts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_LABEL, _ROW, _WIDTH = 172, 26, 400  # narrow enough for letters to stay legible on a phone
_LINE = 15  # height of a line of a label
_STRIP, _AXIS = 92, 62  # height of a curve with its name; where its steps begin
_LEFT, _RIGHT, _BASE = 44, _WIDTH - 16, 256  # where the axes of points stand
_LETTER = 7.0  # width of a letter, at most on average
_MOST_LETTERS = 22  # of a line of a label; the whole is in its title


@dataclass(frozen=True)
class Bar:
    """A bar of a chart, drawn from 0."""

    labels: Sequence[str]
    """The lines of text beside it."""
    value: float
    """Where the bar ends."""
    low: float | None = None
    """Lower end of its interval."""
    high: float | None = None
    """Upper end of its interval."""
    is_marked: bool = False
    """Whether it is drawn in the accent colour."""

    @property
    def height(self) -> int:
        """How much of the chart's height it takes."""
        return max(_ROW, 8 + _LINE * len(self.labels))


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, one below the other."""

    title: str
    """What the bars show, for readers who cannot see them."""
    bars: Sequence[Bar]
    """The bars, from top to bottom."""
    line: tuple[str, float] | None = None
    """A line across all bars, and what it stands for."""

    def svg(self) -> str:
        """The chart as SVG text."""
        ends = [each for bar in self.bars for each in (bar.value, bar.low, bar.high, 0.0) if each is not None]
        ends += [self.line[1]] if self.line else []
        low, high = min(ends), max(ends)
        scale = (_WIDTH - _LABEL - 50) / ((high - low) or 1.0)

        def x(value: float) -> float:
            return round(_LABEL + (value - low) * scale, 1)

        height, drawn = 8, list[str]()
        for bar in self.bars:
            drawn.append(_bar(bar, height, x))
            height += bar.height
        behind = ""
        if self.line:
            name, value = self.line
            behind = f'<path class="line" d="M{x(value)} 4V{height}"/>'
            told = f"{name} {value:.3f}"
            left = max(4.0, min(x(value), _WIDTH - 4 - _LETTER * len(told)))
            drawn.append(f'<text class="number" x="{left:.1f}" y="{height + 14}">{escape(told)}</text>')
            height += 18
        return _svg(self.title, height + 6, behind + "".join(drawn))


def _bar(bar: Bar, top: int, x: Callable[[float], float]) -> str:
    """A bar with its labels, its interval and its number."""
    middle, (left, right) = top + (bar.height - 8) / 2, sorted((x(0.0), x(bar.value)))
    parts, first = [], middle - _LINE * (len(bar.labels) - 1) / 2 + 4
    for i, label in enumerate(bar.labels):
        place = f'x="{_LABEL - 8}" y="{first + i * _LINE:g}" text-anchor="end"'
        parts.append(f"<text {place}><title>{escape(label)}</title>{escape(_short(label))}</text>")
    kind = "bar marked" if bar.is_marked else "bar"
    parts.append(f'<rect class="{kind}" x="{left}" y="{middle - 9:g}" width="{max(right - left, 1):.1f}" height="18"/>')
    if bar.low is not None and bar.high is not None:
        caps = "".join(f"M{x(each)} {middle - 5:g}v10" for each in (bar.low, bar.high))
        parts.append(f'<path class="interval" d="M{x(bar.low)} {middle:g}H{x(bar.high)}{caps}"/>')
        right = max(right, x(bar.high))
    return "".join([*parts, f'<text class="number" x="{right + 6}" y="{middle + 4:g}">{bar.value:.3f}</text>'])


def _short(label: str) -> str:
    return label if len(label) <= _MOST_LETTERS else f"{label[: _MOST_LETTERS - 1]}\u2026"


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
    """Curves over the same steps, one below the other."""

    title: str
    """What the curves show, for readers who cannot see them."""
    steps: Sequence[float]
    """The steps, which all curves share."""
    series: Sequence[tuple[str, Sequence[float | None]]]
    """Name and values of each curve; None where a step has no value."""
    unit: str = "step"
    """What the steps are called."""
    has_one_scale: bool = False
    """Whether all curves have the same scale; else each has its own."""

    def svg(self) -> str:
        """The chart as SVG text."""
        shown = [(name, values) for name, values in self.series if any(each is not None for each in values)]
        first, last = min(self.steps), max(self.steps)
        parts, known = [], [y for _, values in shown for y in values if y is not None]
        scale = (min(known), max(known)) if self.has_one_scale else None
        for k, (name, values) in enumerate(shown):
            points = [(x, y) for x, y in zip(self.steps, values, strict=True) if y is not None]
            parts.append(_curve(name, points, (first, last), (k + 1) * _STRIP - 12, scale))
        bottom, unit = len(shown) * _STRIP, escape(self.unit)
        for x, step, anchor in ((_AXIS, first, "start"), (_WIDTH - 8, last, "end")):
            parts.append(f'<text class="number" x="{x}" y="{bottom + 6}" text-anchor="{anchor}">{unit} {step:g}</text>')
        return _svg(self.title, bottom + 12, "".join(parts))


def _curve(
    name: str,
    points: Sequence[tuple[float, float]],
    steps: tuple[float, float],
    base: float,
    scale: tuple[float, float] | None,
) -> str:
    """A curve with its name above it, and its axes with their ends; without a scale it has its own."""
    (first, last), (low, high) = steps, scale or (min(y for _, y in points), max(y for _, y in points))
    top = base - _STRIP + 34
    places = []
    for x, y in points:
        across = (x - first) / ((last - first) or 1.0) * (_WIDTH - _AXIS - 14)
        up = (y - low) / ((high - low) or 1.0) * (base - top)
        places.append((f"{_AXIS + across:.1f}", f"{base - up:.1f}"))
    parts = [
        f'<text x="{_AXIS}" y="{top - 8}">{escape(name)}</text>',
        f'<path class="axis" d="M{_AXIS - 4} {top}V{base}H{_WIDTH - 8}"/>',
    ]
    ends = [(low, base)] if low == high else [(low, base), (high, top)]
    for value, y in ends:
        parts.append(f'<text class="number" x="{_AXIS - 8}" y="{y + 4}" text-anchor="end">{value:.3g}</text>')
    parts.append(f'<path class="curve" d="M{"L".join(f"{x} {y}" for x, y in places)}"/>')
    return "".join([*parts, *(f'<circle class="virtual" cx="{x}" cy="{y}" r="3"/>' for x, y in places)])


@dataclass(frozen=True)
class Point:
    """A named point of a chart."""

    label: str
    """The text beside it."""
    x: float
    """What it costs; above 0."""
    y: float
    """How good it is."""
    is_marked: bool = False
    """Whether it is drawn in the accent colour."""


@dataclass(frozen=True)
class Points:
    """Points of cost and quality; a line joins those that no other beats in both."""

    title: str
    """What the points show, for readers who cannot see them."""
    across: str
    """What x is, with its unit; its axis is logarithmic."""
    points: Sequence[Point]
    """The points."""

    def svg(self) -> str:
        """The chart as SVG text."""
        logs, ys = [math.log10(each.x) for each in self.points], [each.y for each in self.points]
        (first, last), (low, high) = (min(logs), max(logs)), (min(ys), max(ys))

        def place(point: Point) -> tuple[float, float]:
            across = (math.log10(point.x) - first) / ((last - first) or 1.0)
            up = (point.y - low) / ((high - low) or 1.0)
            return round(_LEFT + 8 + across * (_RIGHT - _LEFT - 16), 1), round(_BASE - 8 - up * (_BASE - 32), 1)

        parts = [self._axes((first, last), (low, high))]
        front = sorted(place(each) for each in self.points if not self._is_beaten(each))
        if len(front) > 1:
            parts.append(f'<path class="line" d="M{"L".join(f"{x} {y}" for x, y in front)}"/>')
        labels = _apart([(*place(each), each.label) for each in self.points], _RIGHT)
        for point, (label_x, label_y, anchor) in zip(self.points, labels, strict=True):
            (x, y), kind = place(point), "virtual" if point.is_marked else "dot"
            text = f'<text x="{label_x:.1f}" y="{label_y:.1f}" text-anchor="{anchor}">{escape(point.label)}</text>'
            parts.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="4"/>{text}')
        return _svg(self.title, _BASE + 44, "".join(parts))

    def _axes(self, logs: tuple[float, float], ys: tuple[float, float]) -> str:
        """Both axes with their ends."""
        (first, last), (low, high) = logs, ys
        parts = [f'<path class="axis" d="M{_LEFT} 16V{_BASE}H{_RIGHT}"/>']
        for value, y in [(low, _BASE - 4)] if low == high else [(low, _BASE - 4), (high, 28)]:
            parts.append(f'<text class="number" x="{_LEFT - 4}" y="{y}" text-anchor="end">{value:.2f}</text>')
        middle = ((_LEFT + _RIGHT) // 2, _BASE + 32, "middle", self.across)
        ends = (
            (_LEFT, _BASE + 16, "start", _axis_number(10**first)),
            (_RIGHT, _BASE + 16, "end", _axis_number(10**last)),
        )
        for x, y, anchor, told in (*ends, middle):
            parts.append(f'<text class="number" x="{x}" y="{y}" text-anchor="{anchor}">{escape(told)}</text>')
        return "".join(parts)

    def _is_beaten(self, point: Point) -> bool:
        """Whether another point is at least as good in both, and better in one."""
        return any(
            other.x <= point.x and other.y >= point.y and (other.x, other.y) != (point.x, point.y)
            for other in self.points
        )


def _apart(places: Sequence[tuple[float, float, str]], right: float) -> list[tuple[float, float, str]]:
    """Where each label stands: on a side of its point where it covers nothing, or below labels and points there."""
    taken, found = [(x - 4, x + 4, y + 4) for x, y, _ in places], dict[int, tuple[float, float, str]]()

    def is_free(start: float, width: float, level: float) -> bool:
        return all(abs(level - other) >= 12 or start >= end or begin >= start + width for begin, end, other in taken)

    for i in sorted(range(len(places)), key=lambda i: places[i][1]):
        x, y, label = places[i]
        width, level = _LETTER * len(label), y + 4
        sides = [(x + 8, x + 8, "start")] if x + 8 + width <= right else []
        sides += [(x - 8 - width, x - 8, "end")] if not sides or x - 8 - width >= _LEFT else []
        start, at, anchor = next((side for side in sides if is_free(side[0], width, level)), sides[0])
        while not is_free(start, width, level):
            level += 1
        taken.append((start, start + width, level))
        found[i] = (at, level, anchor)
    return [found[i] for i in range(len(places))]


def _axis_number(value: float) -> str:
    """A number of an axis: three digits, and a large one in full."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _svg(title: str, height: int, inside: str) -> str:
    label = escape(title, quote=True)
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {height}"><title>{label}</title>{inside}</svg>'
