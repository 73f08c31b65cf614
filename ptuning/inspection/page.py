"""An inspection as one HTML file: no script, nothing fetched, light and dark, for phones and paper.

Knows nothing of how anything was measured. Tokens are text of anyone's making, so everything is escaped.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ptuning.evaluation import Bar, Estimate, Table
from ptuning.evaluation import charts as drawing
from ptuning.files import whole_file
from ptuning.inspection.measures.ladder import SOFT
from ptuning.inspection.measures.nearest_tokens import CHANCE, badges
from ptuning.inspection.report import Report

_SIGNIFICANT = 0.05
_ATOMS_SHOWN = 3  # of each virtual token; the numbers behind hold the others
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


def write_page(report: Report, path: str | Path, name: str = "soft prompt") -> Path:
    """Writes the page, in place of an older one."""
    with whole_file(Path(path)) as beside:
        beside.write_text(page(report, name), encoding="utf-8")
    return Path(path)


def page(report: Report, name: str = "soft prompt") -> str:
    """The page as text."""
    figures = [_grid(report), _ladder(report), _cloud(report), _importance(report), _trajectory(report), _atoms(report)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(report.verdict.word)}: {escape(name)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>What {escape(name)} says</h1>{_verdict(report)}"
        f"{''.join(figures)}</body></html>\n"
    )


def _verdict(report: Report) -> str:
    verdict = report.verdict
    row = f"<p>The prompt made of {escape(str(dict(report.row)))}.</p>" if report.row else ""
    numbers = {
        "what the soft prompt gains over random tokens": verdict.gain,
        "what it gains over the untrained prompt": verdict.learned,
        "decoding fidelity F, the share of the gain that the decoding keeps as text": verdict.fidelity,
        "discretisation gap, lost when each virtual token becomes its nearest token": verdict.gap,
    }
    known = "".join(f"<tr><th>{name}</th><td>{each}</td></tr>" for name, each in numbers.items() if each is not None)
    known += _behaviour(report)
    table = f'<div class="wide"><table>{known}</table></div>' if known else ""
    limits = ", ".join(f"{name} {value:g}" for name, value in verdict.thresholds.items())
    return (
        f'{row}<div class="verdict" id="verdict"><strong>{escape(verdict.word)}</strong>'
        f"{escape(verdict.sentence)}</div>"
        f'<p class="note">{escape(report.note)}</p>{table}<p class="note">Thresholds: {limits}. Gains are counted in '
        f"{verdict.measure or 'nothing: too few rows were given'}{_num_rows(report)}; brackets hold 95 % intervals.</p>"
    )


def _num_rows(report: Report) -> str:
    return "" if report.ladder is None else f", on {report.ladder.scores.num_rows(SOFT):,} rows"


def _behaviour(report: Report) -> str:
    """Lines on what the decoding makes the model answer, and the decoding as text."""
    ladder, lines = report.ladder, ""
    if ladder is not None and ladder.behaviour is not None:
        what = "behavioural fidelity, 1 - KL(prompt, decoding) / KL(prompt, random) over the labels"
        lines += f"<tr><th>{what}</th><td>{Estimate(**ladder.behaviour)}</td></tr>"
    if ladder is not None and ladder.text is not None:
        lines += f"<tr><th>the decoding as text</th><td><code>{_token(ladder.text)}</code></td></tr>"
    return lines


def _figure(anchor: str, title: str, how: str, drawn: str, table: str = "") -> str:
    """A figure with a sentence on how to read it, and its numbers as text."""
    numbers = f'<details><summary>The numbers</summary><div class="wide">{table}</div></details>' if table else ""
    return (
        f'<section><h2>{escape(title)}</h2><figure id="{anchor}"><figcaption>{escape(how)}</figcaption>{drawn}</figure>'
        f"{numbers}</section>"
    )


def _grid(report: Report) -> str:
    ranks = max(record["rank"] for record in report.decoding)
    head = "".join(f"<th>{name}</th>" for name in ("position", "began at", "p", "q", *range(1, ranks + 1)))
    rows = []
    for mine in report.neighbours:
        own = mine[0]
        grey = ' class="grey"' if own["q"] is None or own["q"] > _SIGNIFICANT else ""
        cells = "".join(
            f"<td{grey}><code>{_token(each['token'])}</code> {each['cosine']:.2f}{_badges(each)}</td>" for each in mine
        )
        start = "" if own["init_token"] is None else f"<code>{_token(own['init_token'])}</code>"
        rows.append(
            f"<tr><th>{own['position']}</th><td>{start}</td><td>{_cell(own['p'])}</td>"
            f"<td>{_cell(own['q'])}</td>{cells}</tr>"
        )
    grid = f'<div class="wide"><table aria-label="nearest tokens">{f"<tr>{head}</tr>"}{"".join(rows)}</table></div>'
    how = (
        f"A line a virtual token, its nearest tokens by {report.metric.replace('_', ' ')} from left to right, with "
        "their cosine. Grey: chance may come as near (q above 0.05, by cosine), or the token is the one it began at. "
        f"{CHANCE}. "
        "INIT: that token; HUB: one that random vectors decode to; GLITCH: one that was hardly trained, or a piece of "
        "a character."
    )
    return _figure("grid", "Nearest tokens", how, grid)


def _ladder(report: Report) -> str:
    if report.ladder is None:
        return ""
    table = report.ladder.table
    measure = report.verdict.measure or "accuracy"
    chart = [
        Bar(each["rung"], each[measure], each[f"{measure}_low"], each[f"{measure}_high"], each["rung"] == SOFT)
        for each in table
    ]
    how = f"The {measure} with each thing in the prompt's place, on the same rows; lines are 95 % intervals. "
    how += "A decoding means something where its bar reaches the soft prompt's and random tokens' does not."
    return _figure("ladder", "What it does", how, drawing.bars(f"{measure} of each rung", chart), _numbers(table))


def _cloud(report: Report) -> str:
    known = report.cloud
    how = (
        "Tokens drawn at random (small dots) in the plane of their two principal directions, which holds "
        f"{known['share']:.0%} of their variance; arrows run from where each virtual token began to where it is. Near "
        "in this plane is not near in the whole space."
    )
    drawn = drawing.cloud("vocabulary and prompt", known["tokens"], known["prompt"], known["init"])
    rank = f"effective rank {report.geometry.effective_rank:.1f} of {report.num_virtual_tokens}"
    return _figure("cloud", "Where it lies", f"{how} The prompt's {rank}.", drawn, _numbers(report.geometry.table))


def _importance(report: Report) -> str:
    if report.importance is None:
        return ""
    table, columns = report.importance, ("mean", "random")
    name = next(each for each in columns if table[0][each] is not None)  # one virtual token alone has no others' mean
    low, high = f"{name}_low", f"{name}_high"
    chart = [
        Bar(f"{own['position']} {near['token']!r}", own[name], own[low], own[high], own[low] > 0)
        for own, near in zip(table, report.nearest, strict=True)
    ]
    control = sum(table.column("random")) / len(table)
    how = (
        f"How much the loss of a row rises when a virtual token is replaced by "
        f"{'the mean of the others' if name == 'mean' else 'a random token'}; lines are 95 % intervals, dark bars "
        f"those above 0. The control, a random token in its place, raises it by {control:.3f} on average."
    )
    drawn = drawing.bars("change of the loss when replaced", chart)
    return _figure("importance", "Which virtual tokens matter", how, drawn, _numbers(table))


def _trajectory(report: Report) -> str:
    if report.trajectory is None or len(report.trajectory) < 2:
        return ""
    table = report.trajectory
    names = {"drift": "distance", "cosine": "cosine", "norm": "norm", "num_flips": "decode flips"}
    names |= {"loss": "training loss", "eval_loss": "validation loss"}
    series = [(shown, table.column(name)) for name, shown in names.items()]
    series = [(shown, values) for shown, values in series if any(each is not None for each in values)]
    how = "The prompt's way through training: mean distance from its start and cosine with it, norm, how many virtual "
    how += "tokens decode otherwise than at the snapshot before, and what losses the run wrote down."
    return _figure(
        "trajectory",
        "How it got there",
        how,
        drawing.curves("trajectory", table.column("step"), series),
        _numbers(table),
    )


def _atoms(report: Report) -> str:
    how = (
        "Each virtual token as a sum of a few tokens (orthogonal matching pursuit), and how much of it they explain. "
        "Below what random vectors reach (the 95 % point) the tokens mean no more than chance."
    )
    table = report.atoms
    num = min(_ATOMS_SHOWN, max(table.column("num_atoms")))
    names = ("position", "tokens", "explained", "null_95")
    records = [{name: each[name] for name in names} for each in table if each["num_atoms"] == num]
    shown = Table({name: table.columns[name] for name in names}, records)
    grid = f'<div class="wide">{_numbers(shown)}</div>'
    return _figure("atoms", f"As sums of {num} tokens", how, grid, _numbers(table))


def _numbers(table: Table) -> str:
    """A table's records; what each column holds is its heading's title."""
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
    """A token's text, its spaces and line ends to be seen."""
    return escape(repr(text)[1:-1])


def _badges(record: Mapping[str, Any]) -> str:
    return "".join(f'<span class="badge">{name}</span>' for name in badges(record))
