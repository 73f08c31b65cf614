"""An inspection as one HTML file: no script, nothing fetched, light and dark, for phones and paper.

Knows nothing of how anything was measured. Tokens can be any text, so everything is escaped.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ptuning.evaluation import Table
from ptuning.files import whole_file
from ptuning.inspection.contents import Contents
from ptuning.inspection.measures.catalogue import BESIDE_THE_VERDICT, MEASURES, OPEN
from ptuning.inspection.measures.protocol import Cell, Chart, Grid, Measured
from ptuning.inspection.verdict import DECORATIVE, ECHO, FAITHFUL, MEANINGS, PARTIAL

_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1e21;--soft:#575e65;--line:#d9dde1;--accent:#1b6ca8;--other:#b3452c;
--fill:#9fb8ca;--dim:#f2f4f6;--good:#1d7a46;--fair:#8a6100}
@media (prefers-color-scheme:dark){:root{--paper:#15181b;--ink:#e6e8ea;--soft:#a6aeb5;--line:#343a40;--accent:#5eb1ee;
--other:#ef8f7a;--fill:#48616f;--dim:#1e2226;--good:#63c78d;--fair:#e0b04c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:74rem;padding:1rem 1rem 3rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:break-word}
h1{font-size:1.25rem;margin:0 0 .8rem}h2{font-size:1.1rem;margin:2.2rem 0 .3rem}p{margin:.4rem 0}
.top{display:grid;gap:1rem 2rem}.top>*{min-width:0}
@media (min-width:60rem){.top{grid-template-columns:1fr 1fr;align-items:start}}
.verdict{--mark:var(--soft);border-left:.4rem solid var(--mark);padding:.6rem 1rem;background:var(--dim)}
.verdict strong{font-size:1.7rem;line-height:1.2;display:block;color:var(--mark)}
.faithful{--mark:var(--good)}.partial{--mark:var(--fair)}.echo,.decorative{--mark:var(--other)}
#effect{font-size:1.05rem;margin:0 0 .8rem}
.top h2{margin:1rem 0 .2rem}
figure{margin:0}figcaption,.note{color:var(--soft);font-size:.9rem}
.wide{overflow-x:auto;margin-top:.5rem}
table{border-collapse:collapse;font-size:.88rem}td,th{padding:.3rem .6rem;border:1px solid var(--line);text-align:left;
vertical-align:top}
td{white-space:pre-wrap}td.grey{color:var(--soft);background:var(--dim)}
.matrix td,.matrix th{padding:.2rem .3rem;text-align:right}.matrix th:first-child{text-align:left}
.same{background:var(--dim);font-weight:600}
code{font-family:ui-monospace,monospace}
.badge{font-size:.68rem;border:1px solid var(--other);color:var(--other);border-radius:.3rem;padding:0 .25rem;
margin-left:.3rem}
summary{cursor:pointer;padding:.3rem 0}details details{margin-left:0}
dl{font-size:.9rem;margin:.5rem 0}dt{color:var(--soft)}dd{margin:0 0 .3rem;overflow-wrap:anywhere}
@media (min-width:40rem){dl{display:grid;grid-template-columns:minmax(6rem,14rem) 1fr;gap:.2rem 1rem}
dd{margin:0;min-width:0}}
svg{display:block;width:100%;max-width:36rem;height:auto;font:12px system-ui,sans-serif}
svg text{fill:var(--ink)}svg .number{fill:var(--soft)}
.bar{fill:var(--fill)}.bar.marked{fill:var(--accent)}.interval,.axis{stroke:var(--ink);fill:none}
.axis{stroke:var(--line)}.line{stroke:var(--other);stroke-dasharray:4 3;fill:none}
.token{fill:var(--line)}.virtual{fill:var(--accent)}.arrow{stroke:var(--other);fill:none}.head{fill:var(--other)}
.curve{stroke:var(--accent);fill:none;stroke-width:2}
@media (max-width:60rem){.stack tr:first-child{display:none}
.stack tr{display:flex;flex-wrap:wrap;gap:.1rem .9rem;padding:.5rem 0;border-top:1px solid var(--line)}
.stack td,.stack th{border:0;padding:0;max-width:100%;overflow-wrap:anywhere}.stack td:empty{display:none}
.stack [data-label]::before{content:attr(data-label) " ";color:var(--soft);font-weight:400}}
@media print{body{max-width:none}.top{grid-template-columns:1fr 1fr}details:not([open]){display:none}
section,figure{break-inside:avoid}}
"""
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
        f"<style>{_STYLE}</style></head><body><h1>What {escape(name)} says</h1>"
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
        f"<details><summary>The verdict in numbers</summary>{_pairs(known)}"
        f'<p class="note">Thresholds: {limits}. {gains}{rows}; brackets hold 95 % intervals.</p></details>'
    )


def _legend() -> str:
    """What each verdict means."""
    return f'<details id="legend"><summary>What the verdicts mean</summary>{_pairs(MEANINGS)}</details>'


def _provenance(report: Contents) -> str:
    if not report.provenance:
        return ""
    return f'<section id="provenance"><h2>Where it comes from</h2>{_pairs(report.provenance)}</section>'


def _pairs(pairs: Mapping[str, str]) -> str:
    """Names and texts, one pair below the other."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs.items())
    return f"<dl>{lines}</dl>" if lines else ""


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
    numbers = _numbers(measured.table)
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
        return _numbers(chart)
    return _grid(chart) if isinstance(chart, Grid) else chart.svg()


def _grid(grid: Grid) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in grid.heads)
    rows = []
    for i, (first, *others) in enumerate(grid.rows):
        cells = "".join(
            _grid_cell(value, name, grid.is_matrix and i == k)
            for k, (value, name) in enumerate(zip(others, grid.heads[1:], strict=True))
        )
        rows.append(f"<tr><th>{_cell(first)}</th>{cells}</tr>")
    label, kind = escape(grid.title, quote=True), "matrix" if grid.is_matrix else "stack"
    return f'<div class="wide"><table class="{kind}" aria-label="{label}"><tr>{head}</tr>{"".join(rows)}</table></div>'


def _grid_cell(value: Any, head: str, is_same: bool) -> str:
    label = f' data-label="{escape(head, quote=True)}"'
    if not isinstance(value, Cell):
        same = ' class="same"' if is_same else ""
        return f"<td{same}{label}>{_cell(value)}</td>"
    badges = "".join(f'<span class="badge">{escape(name)}</span>' for name in value.badges)
    number = f" {value.number}" if value.number else ""
    grey = ' class="grey"' if value.is_grey else ""
    return f"<td{grey}{label}><code>{_token(value.text)}</code>{number}{badges}</td>"


def _numbers(table: Table) -> str:
    """A table; the title of each heading says what the column holds."""
    head = "".join(
        f'<th title="{escape(what, quote=True)}">{escape(name)}</th>' for name, what in table.columns.items()
    )
    rows = [
        "".join(f'<td data-label="{escape(name, quote=True)}">{_cell(record[name])}</td>' for name in table.columns)
        for record in table
    ]
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table class="stack"><tr>{head}</tr>{lines}</table></div>'


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
