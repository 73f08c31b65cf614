"""An inspection as one HTML file: no script, nothing fetched, light and dark, for phones and paper.

Knows nothing of how anything was measured. Tokens can be any text, so everything is escaped.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ptuning.evaluation import STYLE, Table, cell_html, pairs_html, table_html, token_html
from ptuning.files import whole_file
from ptuning.inspection.contents import Contents
from ptuning.inspection.measures.catalogue import BESIDE_THE_VERDICT, MEASURES, OPEN
from ptuning.inspection.measures.protocol import Cell, Chart, Grid, Measured
from ptuning.inspection.verdict import DECORATIVE, ECHO, FAITHFUL, MEANINGS, PARTIAL

_KINDS = {FAITHFUL: "faithful", PARTIAL: "partial", ECHO: "echo", DECORATIVE: "decorative"}


def write_page(report: Contents, path: str | Path, name: str = "soft prompt") -> Path:
    """Writes the page; replaces an older one."""
    with whole_file(Path(path)) as beside:
        beside.write_text(page(report, name), encoding="utf-8")
    return Path(path)


def page(report: Contents, name: str = "soft prompt") -> str:
    """The page as text."""
    made = report.measures
    top = "".join([_verdict(report), _figure(made[BESIDE_THE_VERDICT]) if BESIDE_THE_VERDICT in made else ""])
    asked_for = [name for name in made if name not in MEASURES]
    opened = "".join(_section(made[name]) for name in (*OPEN, *asked_for) if name in made)
    others = [each for name, each in made.items() if name not in (*OPEN, *asked_for, BESIDE_THE_VERDICT)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(report.verdict.word)}: {escape(name)}</title>'
        f"<style>{STYLE}</style></head><body><h1>What {escape(name)} says</h1>"
        f'<div class="top">{top}</div>{_legend()}{opened}{_folded(others)}{_provenance(report)}</body></html>\n'
    )


def _verdict(report: Contents) -> str:
    """The verdict, what to do, and its numbers."""
    verdict, row = report.verdict, ""
    if report.row:
        row = f"<p>The prompt for {escape(str(dict(report.row)))}.</p>"
    kind = _KINDS.get(verdict.word, "unknown")
    effect = f'<p id="effect">{escape(verdict.effect)}</p>' if verdict.effect else ""
    return (
        f'<div>{row}{effect}<div class="verdict {kind}" id="verdict"><strong>{escape(verdict.word)}</strong>'
        f'{escape(verdict.sentence)}</div><div id="advice"><h2>What to do</h2><p>{escape(verdict.advice)}</p></div>'
        f'<p class="note">{escape(report.note)}</p>{_judged(report)}</div>'
    )


def _judged(report: Contents) -> str:
    """The numbers that the verdict rests on, folded."""
    verdict = report.verdict
    numbers = {
        "gain of the soft prompt over the same words without it": verdict.over_words,
        "its gain over random tokens": verdict.gain,
        "its gain over the untrained prompt": verdict.learned,
        "decoding fidelity F, the share of the gain that the decoding keeps": verdict.fidelity,
        "discretisation gap, lost when each virtual token becomes its nearest token": verdict.gap,
    }
    known = {name: str(each) for name, each in numbers.items() if each is not None}
    for measured in report.measures.values():
        known |= measured.findings or {}
    limits = ", ".join(f"{name} {value:g}" for name, value in verdict.thresholds.items())
    gains = "Nothing was judged: too few rows were given"
    if verdict.measure is not None:
        gains = f"Gains are measured in {verdict.measure}"
    rows = "" if report.num_rows is None else f", on {report.num_rows:,} rows"
    return (
        f"<details><summary>The verdict in numbers</summary>{pairs_html(known)}"
        f'<p class="note">Thresholds: {limits}. {gains}{rows}; brackets hold 95 % intervals.</p></details>'
    )


def _legend() -> str:
    """What each verdict means."""
    return f'<details id="legend"><summary>What the verdicts mean</summary>{pairs_html(MEANINGS)}</details>'


def _provenance(report: Contents) -> str:
    if not report.provenance:
        return ""
    return f'<section id="provenance"><h2>Where it comes from</h2>{pairs_html(report.provenance)}</section>'


def _folded(others: Sequence[Measured]) -> str:
    """Measures for specialists, folded away."""
    if not others:
        return ""
    names = ", ".join(escape(each.title) for each in others)
    inside = "".join(map(_section, others))
    return f'<details id="specialists"><summary>For specialists: {names}</summary>{inside}</details>'


def _section(measured: Measured) -> str:
    return f"<section><h2>{escape(measured.title)}</h2>{_figure(measured)}</section>"


def _figure(measured: Measured) -> str:
    """A measure: its chart, how to read it, and all its numbers."""
    numbers = table_html(measured.table)
    drawn, details = numbers, ""
    if measured.chart is not None:
        drawn, details = _drawn(measured.chart), f"<details><summary>The numbers</summary>{numbers}</details>"
    return (
        f'<figure id="{escape(measured.name, quote=True)}"><figcaption>{escape(measured.how)}</figcaption>{drawn}'
        f"{details}</figure>"
    )


def _drawn(chart: Chart) -> str:
    """A chart as HTML."""
    if isinstance(chart, Table):
        return table_html(chart)
    return _grid(chart) if isinstance(chart, Grid) else chart.svg()


def _grid(grid: Grid) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in grid.heads)
    rows = []
    for i, (first, *others) in enumerate(grid.rows):
        cells = "".join(
            _grid_cell(value, name, grid.is_matrix and i == k)
            for k, (value, name) in enumerate(zip(others, grid.heads[1:], strict=True))
        )
        rows.append(f"<tr><th>{cell_html(first)}</th>{cells}</tr>")
    label, kind = escape(grid.title, quote=True), "matrix" if grid.is_matrix else "stack"
    return f'<div class="wide"><table class="{kind}" aria-label="{label}"><tr>{head}</tr>{"".join(rows)}</table></div>'


def _grid_cell(value: Any, head: str, is_same: bool) -> str:
    label = f' data-label="{escape(head, quote=True)}"'
    if not isinstance(value, Cell):
        same = ' class="same"' if is_same else ""
        return f"<td{same}{label}>{cell_html(value)}</td>"
    badges = "".join(f'<span class="badge">{escape(name)}</span>' for name in value.badges)
    number = f" {value.number}" if value.number else ""
    grey = ' class="grey"' if value.is_grey else ""
    return f"<td{grey}{label}><code>{token_html(value.text)}</code>{number}{badges}</td>"
