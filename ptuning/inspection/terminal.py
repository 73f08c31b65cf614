"""An inspection as lines for a terminal, the verdict first.

Knows nothing of how anything was measured.
"""

import textwrap
from typing import Any

from ptuning.evaluation import Table
from ptuning.inspection.contents import Contents


def lines(report: Contents, width: int | None = None) -> list[str]:
    """The report for a terminal: the verdict, then every measure that has lines.

    Args:
        report: The report.
        width: The terminal's columns: rows of tables are cut to it, sentences broken; None: lines stay whole.
    """
    found = _lines(report)
    return found if width is None else [part for line in found for part in _fitted(line, width)]


def _fitted(line: str, width: int) -> list[str]:
    """A line within a width."""
    if len(line) <= width:
        return [line]
    is_row = "  " in line.strip()
    return [f"{line[: width - 1]}\u2026"] if is_row else textwrap.wrap(line, width)


def _lines(report: Contents) -> list[str]:
    verdict = report.verdict
    found = [f"the prompt for {dict(report.row)}"] if report.row else []
    found += [*([verdict.effect] if verdict.effect else []), f"{verdict.word}: {verdict.sentence}", verdict.advice]
    if verdict.measure is not None:
        found.append(f"decoding fidelity F ({verdict.measure}) {verdict.fidelity}; discretisation gap {verdict.gap}")
    for measured in report.measures.values():
        found += [f"{name}: {value}" for name, value in (measured.findings or {}).items()]
    for measured in report.measures.values():
        found += ["", *measured.lines] if measured.lines else []
    return [*found, "", report.note]


def table_lines(table: Table) -> list[str]:
    """A table as lines, one for each record."""
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
