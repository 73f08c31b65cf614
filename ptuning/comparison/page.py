"""A comparison as one HTML file, in the design of the inspector's report: nothing fetched, no script.

Names of ways, labels and paths can be any text, so everything is escaped. Knows nothing of how anything was measured.
"""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

from ptuning.comparison.measures import ACCURACY
from ptuning.comparison.report import ZERO_SHOT, Comparison
from ptuning.comparison.results import WayResult
from ptuning.comparison.rules_of_thumb import NO_CORRECTION, rules_table
from ptuning.evaluation import STYLE, Bar, Bars, Curves, Point, Points, Table, pairs_html, table_html
from ptuning.files import whole_file

_OWN_STYLE = ".dot{fill:var(--fill)}.plots{display:grid;gap:1rem 2rem}.plots>*{min-width:0}" + (
    "@media (min-width:60rem){.plots{grid-template-columns:1fr 1fr 1fr}"
    "td[data-label=way],td[data-label=here]{white-space:nowrap}}"
)
_LEAST = 1e-3  # of a logarithmic axis
_PLOTS: Sequence[tuple[str, str, Callable[[WayResult], float]]] = (
    ("training time", "seconds until it can answer", lambda way: way.costs.seconds),
    ("what is shipped", "kilobytes beside the base", lambda way: way.costs.bytes_to_ship / 1000),
    ("latency", "milliseconds a request, alone", lambda way: way.costs.milliseconds),
)
_RULES = "Rules of thumb on when to fine-tune, and whether they held here"
_HOW = (
    "Each bar is a way's mean {} on the test rows; the thin line is its 95 % interval over rows and seeds. "
    "Intervals of two ways may overlap where the paired difference below is clear: the rows are the same."
)
_LIMITS = (
    "Among many ways the best one also had luck: its lead tends to be smaller on new rows. With few seeds the "
    "intervals are too narrow for what depends on chance. Costs were measured on one machine, and nothing was kept "
    "from one request for the next."
)


def write_page(comparison: Comparison, path: Path) -> None:
    """Writes the page; replaces an older one."""
    with whole_file(path) as beside:
        beside.write_text(page(comparison), encoding="utf-8")


def page(comparison: Comparison) -> str:
    """The page as text."""
    curve, indexes = comparison.curve(), comparison.indexes()
    title = f"Compared: {comparison.about.get('base', 'a model')}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}{_OWN_STYLE}</style></head><body>'
        f'<h1>Which way to take</h1><div class="top">{_recommended(comparison)}{_bars(comparison)}</div>'
        f"{_section(_headed(comparison.results.measure), table_html(comparison.quality()))}"
        f"{_section('What each way costs', _plots(comparison) + table_html(comparison.costs()))}"
        f"{_section('What looking up costs', table_html(indexes)) if indexes else ''}"
        f"{_section('Fewer training rows', _curves(comparison, curve)) if curve else ''}"
        f"{_section('What is known of each way', table_html(comparison.facts()))}"
        f"{_rules(comparison)}{_left_out(comparison)}"
        f"{_section('What was compared', pairs_html(comparison.about))}</body></html>\n"
    )


def _recommended(comparison: Comparison) -> str:
    """The recommendation and its reasons."""
    told = comparison.recommendation
    kind = "faithful" if told.is_told_apart else "partial" if told.way else "echo"
    reasons = "".join(f"<li>{escape(each)}</li>" for each in told.reasons)
    measure = comparison.results.measure
    needs = [_need(name.replace(ACCURACY, measure), value) for name, value in comparison.needs.items() if value]
    asked = f'<p class="note">Asked for: {escape(", ".join(needs))}.</p>' if needs else ""
    return (
        f'<div><div class="verdict {kind}" id="recommendation"><strong>{escape(told.way or "none")}</strong>'
        f"{escape(told.sentence)}</div>{asked}{f'<ul>{reasons}</ul>' if reasons else ''}"
        f'<p class="note">{escape(_LIMITS)}</p></div>'
    )


def _need(name: str, value: Any) -> str:
    """A need in words, with its number where it has one."""
    words = name.replace("_", " ")
    return words if value is True else f"{words} {value:g}" if isinstance(value, float) else f"{words} {value}"


def _bars(comparison: Comparison) -> str:
    """The main scores as bars."""
    results = comparison.results
    bars = []
    for way in results.ways:
        told = results.score(way.name)
        is_marked = way.name == comparison.recommendation.way
        bars.append(Bar([way.name], told.value or 0.0, told.low, told.high, is_marked))
    names = results.names
    line = (ZERO_SHOT, results[ZERO_SHOT].score) if ZERO_SHOT in names else None
    drawn = Bars(f"{results.measure} of each way with its interval", bars, line).svg()
    return f'<figure id="scores"><figcaption>{escape(_HOW.format(results.measure))}</figcaption>{drawn}</figure>'


def _plots(comparison: Comparison) -> str:
    """The main score against each cost; the dashed line joins the ways that no other beats in both."""
    figures, measure = [], comparison.results.measure
    for name, across, cost in _PLOTS:
        points = [
            Point(way.name, max(_LEAST, cost(way)), way.score, way.name == comparison.recommendation.way)
            for way in comparison.results.ways
        ]
        drawn = Points(f"{measure} against {name}", across, points).svg()
        figures.append(f"<figure><figcaption>{_headed(measure)} against {escape(name)}</figcaption>{drawn}</figure>")
    note = '<p class="note">The dashed line joins the ways that no other beats in both.</p>'
    return f'<div class="plots">{"".join(figures)}</div>{note}'


def _curves(comparison: Comparison, table: Table) -> str:
    """The learning curves, and their table beside them."""
    ways = [way for way in comparison.results.ways if way.curve]
    sizes = sorted({size for way in ways for size in way.curve})
    series = [(way.name, [mean(way.curve[size]) if size in way.curve else None for size in sizes]) for way in ways]
    measure = comparison.results.measure
    drawn = Curves(f"{measure} on fewer training rows", sizes, series, "rows", has_one_scale=True).svg()
    told = f"<figcaption>{_headed(measure)}, on one scale for all ways</figcaption>"
    return f'<div class="top"><figure>{told}{drawn}</figure>{table_html(table)}</div>'


def _rules(comparison: Comparison) -> str:
    """How rules of thumb fared."""
    note = f'<p class="note">{escape(NO_CORRECTION[:1].upper() + NO_CORRECTION[1:])}.</p>'
    return _section(_RULES, table_html(rules_table(comparison.rules)) + note) if comparison.rules else ""


def _left_out(comparison: Comparison) -> str:
    """The ways that were skipped or failed, as a whole or in part."""
    told = {"Incomplete": comparison.incomplete, "Left out": comparison.left_out}
    return "".join(_section(title, pairs_html(ways)) for title, ways in told.items() if ways)


def _headed(measure: str) -> str:
    """A score's name as it begins a heading."""
    return escape(measure[:1].upper() + measure[1:])


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>"
