"""An inspection as lines for a terminal, the verdict first.

Knows nothing of how anything was measured.
"""

from collections.abc import Mapping
from typing import Any

from ptuning.evaluation import Table
from ptuning.inspection.measures.nearest_tokens import CHANCE, badges
from ptuning.inspection.report import Report


def lines(report: Report) -> list[str]:
    """The report for a terminal: the verdict first."""
    verdict = report.verdict
    found = [*([f"the prompt made of {dict(report.row)}"] if report.row else [])]
    found += [f"{verdict.word}: {verdict.sentence}", "", *_ladder_lines(report), *_decoding_lines(report)]
    shares = report.geometry
    found.append(
        f"effective rank {shares.effective_rank:.1f} of {report.num_virtual_tokens}; vocabulary norms: "
        + ", ".join(f"{value:.3f} at {share} %" for share, value in shares.vocabulary_norms.items())
    )
    num_init = sum(record["is_init"] for record in report.nearest)
    found.append(f"{num_init} of {report.num_virtual_tokens} virtual tokens still decode to their initial token.")
    return [*found, report.note]


def table_lines(table: Table) -> list[str]:
    """A table as lines."""
    shown = [[_cell(record[name]) for name in table.columns] for record in table]
    widths = [max(map(len, column)) for column in zip(list(table.columns), *shown, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in [list(table.columns), *shown]
    ]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else repr(value) if isinstance(value, str) else str(value)


def _ladder_lines(report: Report) -> list[str]:
    if report.ladder is None:
        return []
    found = [f"{'':<24}{'rows':>6}  {'accuracy':<24}{'loss':<24}"]
    for record in report.ladder.table:
        accuracy, loss = (
            f"{record[name]:.3f} ({record[f'{name}_low']:.3f} to {record[f'{name}_high']:.3f})"
            for name in ("accuracy", "loss")
        )
        found.append(f"{record['rung']:<24}{record['rows']:>6}  {accuracy:<24}{loss:<24}")
    verdict = report.verdict
    judged = f"decoding fidelity F ({verdict.measure}) {verdict.fidelity}; discretisation gap {verdict.gap}"
    found += [
        *([judged] if verdict.measure is not None else []),
        *([f"the decoding as text: {report.ladder.text!r}"] if report.ladder.text is not None else []),
        "",
    ]
    return found


def _decoding_lines(report: Report) -> list[str]:
    found = [f"{'':>3}  {'initialised from':<18}{'still':<7}{'norm':>7}{'pct':>6}{'p':>7}{'q':>7}  nearest"]
    for place, mine in zip(report.geometry.table, report.neighbours, strict=True):
        own = mine[0]
        near = "  ".join(f"{each['token']!r} {each['cosine']:.2f}{_badges(each)}" for each in mine)
        start = "-" if own["init_token"] is None else repr(own["init_token"])
        chance = "".join("      -" if own[name] is None else f"{own[name]:>7.3f}" for name in ("p", "q"))
        numbers = f"{place['norm']:>7.3f}{place['norm_percentile']:>6.1f}{chance}"
        found.append(f"{own['position']:>3}  {start:<18}{'yes' if own['is_init'] else 'no':<7}{numbers}  {near}")
    return [
        *found,
        f"still: whether it decodes to its initial token; pct: percentile of its norm in the vocabulary; {CHANCE}",
    ]


def _badges(record: Mapping[str, Any]) -> str:
    """What is odd about a token, in brackets."""
    found = badges(record)
    return f" [{', '.join(found)}]" if found else ""
