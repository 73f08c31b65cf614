"""A comparison as one HTML file."""

from pathlib import Path

from ptuning.comparison.report import Comparison


def write_page(comparison: Comparison, path: Path) -> None:
    """Writes the page."""
