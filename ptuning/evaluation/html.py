"""What the HTML pages share: the style, tables, and pairs of names and texts.

All text is escaped here. Knows nothing of what a page is about.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ptuning.evaluation.table import Table

STYLE = """
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
"""The style of every page: light and dark, for phones and paper."""


def pairs_html(pairs: Mapping[str, str]) -> str:
    """Names and texts, one pair below the other."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs.items())
    return f"<dl>{lines}</dl>" if lines else ""


def table_html(table: Table) -> str:
    """A table; the title of each heading says what the column holds."""
    head = "".join(
        f'<th title="{escape(what, quote=True)}">{escape(name)}</th>' for name, what in table.columns.items()
    )
    rows = [
        "".join(f'<td data-label="{escape(name, quote=True)}">{cell_html(record[name])}</td>' for name in table.columns)
        for record in table
    ]
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table class="stack"><tr>{head}</tr>{lines}</table></div>'


def cell_html(value: Any) -> str:
    """A value of a table: a number with four digits, a text, or several of them."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(token_html(each) if isinstance(each, str) else cell_html(each) for each in value)
    return escape(str(value))


def token_html(text: str) -> str:
    """The text of a token, with visible spaces and line ends."""
    return escape(repr(text)[1:-1])
