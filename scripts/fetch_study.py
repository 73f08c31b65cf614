"""Fetches and prepares the development tasks of studies: `python scripts/fetch_study.py [--assets DIR]`.

Knows nothing of where they come from; that is `studies.sources`.
"""

import argparse
import csv
import sys
from pathlib import Path

from studies.sources import SOURCES
from studies.tasks import TASKS, StudyTask, prepare

from ptuning.errors import PTuningError


def described(task: StudyTask) -> str:
    """One line: how many rows each split of a prepared task has, its labels, and where it comes from."""
    counts = []
    for split, path in task.splits.items():
        with path.open(encoding="utf-8", newline="") as file:
            counts.append(f"{sum(1 for _ in csv.DictReader(file)):,} {split}")
    labels = f"labels {', '.join(task.verbalizer)}" if task.verbalizer else "written answers"
    source = SOURCES[task.name].about if task.name in SOURCES else "the demo's"
    return f"{task.name}: {', '.join(counts)}; {labels}; {source}"


def main() -> int:
    """Runs the command and returns its exit status: 0, or 2 for a mistake the user can mend."""
    default = Path(__file__).resolve().parents[1] / "assets"
    parser = argparse.ArgumentParser(description="Fetch and prepare the development tasks of studies.")
    parser.add_argument(
        "--assets", type=Path, metavar="DIR", default=default, help="the folder to fill (default: %(default)s)"
    )
    arguments = parser.parse_args()
    try:
        for name in TASKS:
            print(described(prepare(name, arguments.assets)), flush=True)
    except PTuningError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
