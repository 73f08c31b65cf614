"""An inspection as one HTML file: no script, nothing fetched, light and dark, for phones and paper.

Knows nothing of how anything was measured. Tokens can be any text, so everything is escaped.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ptuning.evaluation import Table
from ptuning.files import whole_file
from ptuning.inspection.contents import Contents
from ptuning.inspection.measures.protocol import Cell, Chart, Grid, Measured

_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1e21;--soft:#5d646b;--line:#d9dde1;--accent:#1b6ca8;--other:#c8553d;
--fill:#9fb8ca;--dim:#eceff1}
@media (prefers-color-scheme:dark){:root{--paper:#15181b;--ink:#e6e8ea;--soft:#a0a8af;--line:#343a40;--accent:#5eb1ee;
--other:#ef8f7a;--fill:#48616f;--dim:#22272b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.3rem}h2{font-size:1.1rem;margin:2rem 0 .3rem}
.verdict{border-left:.4rem solid var(--accent);padding:.2rem 1rem;background:var(--dim)}
.verdict strong{font-size:1.7rem;display:block}
figure{margin:.5rem 0 0}figcaption,.note{color:var(--soft);font-size:.92rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem}td,th{padding:.25rem .5rem;border:1px solid var(--line);text-align:left}
td{white-space:pre}td.grey{color:var(--soft);background:var(--dim)}
code{font-family:ui-monospace,monospace}
.badge{font-size:.68rem;border:1px solid var(--other);color:var(--other);border-radius:.3rem;padding:0 .25rem;
margin-left:.3rem}
svg{width:100%;max-width:40rem;height:auto;font:13px system-ui,sans-serif}
svg text{fill:var(--ink)}svg .number{fill:var(--soft)}
.bar{fill:var(--fill)}.bar.marked{fill:var(--accent)}.interval{stroke:var(--ink);fill:none}
.token{fill:var(--line)}.virtual{fill:var(--accent)}.arrow{stroke:var(--other);fill:none}.head{fill:var(--other)}
.curve{stroke:var(--accent);fill:none;stroke-width:2}
@media print{details{display:none}body{max-width:none}.wide{overflow:visible}td{white-space:normal}}
"""


def write_page(report: Contents, path: str | Path, name: str = "soft prompt") -> Path:
    """Writes the page; replaces an older one."""
    with whole_file(Path(path)) as beside:
        beside.write_text(page(report, name), encoding="utf-8")
    return Path(path)


def page(report: Contents, name: str = "soft prompt") -> str:
    """The page as text."""
    figures = "".join(map(_figure, report.measures.values()))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(report.verdict.word)}: {escape(name)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>What {escape(name)} says</h1>{_verdict(report)}"
        f"{figures}</body></html>\n"
    )


def _verdict(report: Contents) -> str:
    """The verdict with its numbers, thresholds and caveats."""
    verdict = report.verdict
    row = f"<p>The prompt for {escape(str(dict(report.row)))}.</p>" if report.row else ""
    numbers = {
        "gain of the soft prompt over random tokens": verdict.gain,
        "its gain over the untrained prompt": verdict.learned,
        "decoding fidelity F, the share of the gain that the decoding keeps": verdict.fidelity,
        "discretisation gap, lost when each virtual token becomes its nearest token": verdict.gap,
    }
    known = {name: str(each) for name, each in numbers.items() if each is not None}
    for measured in report.measures.values():
        known |= measured.findings or {}
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in known.items())
    table = f'<div class="wide"><table>{lines}</table></div>' if lines else ""
    limits = ", ".join(f"{name} {value:g}" for name, value in verdict.thresholds.items())
    gains = "Nothing was judged: too few rows were given"
    if verdict.measure is not None:
        gains = f"Gains are measured in {verdict.measure}"
    rows = "" if report.num_rows is None else f", on {report.num_rows:,} rows"
    return (
        f'{row}<div class="verdict" id="verdict"><strong>{escape(verdict.word)}</strong>'
        f'{escape(verdict.sentence)}</div><p id="advice"><strong>What to do.</strong> {escape(verdict.advice)}</p>'
        f'<p class="note">{escape(report.note)}</p>{table}<p class="note">Thresholds: {limits}. {gains}{rows}; '
        "brackets hold 95 % intervals.</p>"
    )


def _figure(measured: Measured) -> str:
    """A measure: its chart, how to read it, and all its numbers."""
    numbers = f'<div class="wide">{_numbers(measured.table)}</div>'
    drawn, details = numbers, ""
    if measured.chart is not None:
        drawn, details = _drawn(measured.chart), f"<details><summary>The numbers</summary>{numbers}</details>"
    return (
        f'<section><h2>{escape(measured.title)}</h2><figure id="{escape(measured.name, quote=True)}">'
        f"<figcaption>{escape(measured.how)}</figcaption>{drawn}</figure>{details}</section>"
    )


def _drawn(chart: Chart) -> str:
    """A chart as HTML."""
    if isinstance(chart, Table):
        return f'<div class="wide">{_numbers(chart)}</div>'
    return _grid(chart) if isinstance(chart, Grid) else chart.svg()


def _grid(grid: Grid) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in grid.heads)
    rows = []
    for first, *others in grid.rows:
        rows.append(f"<tr><th>{_cell(first)}</th>{''.join(map(_grid_cell, others))}</tr>")
    label = escape(grid.title, quote=True)
    return f'<div class="wide"><table aria-label="{label}"><tr>{head}</tr>{"".join(rows)}</table></div>'


def _grid_cell(value: Any) -> str:
    if not isinstance(value, Cell):
        return f"<td>{_cell(value)}</td>"
    badges = "".join(f'<span class="badge">{escape(name)}</span>' for name in value.badges)
    number = f" {value.number}" if value.number else ""
    grey = ' class="grey"' if value.is_grey else ""
    return f"<td{grey}><code>{_token(value.text)}</code>{number}{badges}</td>"


def _numbers(table: Table) -> str:
    """A table; the title of each heading says what the column holds."""
    head = "".join(
        f'<th title="{escape(what, quote=True)}">{escape(name)}</th>' for name, what in table.columns.items()
    )
    rows = ["".join(f"<td>{_cell(record[name])}</td>" for name in table.columns) for record in table]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_token(each) if isinstance(each, str) else _cell(each) for each in value)
    return escape(str(value))


def _token(text: str) -> str:
    """The text of a token, with visible spaces and line ends."""
    return escape(repr(text)[1:-1])
