#!/usr/bin/env python
"""Runs a study of how well prompts learn: every training that a YAML file asks for, several at once, and its tables.

Each run is a line of JSON in the results file. Runs that stand there are not made again, so a study that was
interrupted goes on where it stopped, and studies share the runs that they have in common.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from studies import tables
from studies.plan import Run, Study
from studies.tasks import prepare

from ptuning.errors import PTuningError


def make(run: Run, assets: str, num_threads: int) -> dict[str, Any]:
    """Makes one run, in a process of the pool."""
    import torch
    from studies.runs import record_of

    torch.set_num_threads(num_threads)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return record_of(run, prepare(run.task, Path(assets)), Path(folder))
        except PTuningError as error:
            raise RuntimeError(str(error)) from None  # which passes from process to process


def made(runs: Sequence[Run], assets: str, num_processes: int) -> Iterator[dict[str, Any]]:
    """The records of runs, as they become ready."""
    num_threads = max(1, (os.cpu_count() or 1) // num_processes)
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(make, run, assets, num_threads) for run in runs]):
            try:
                yield future.result()
            except Exception as error:  # a run that fails ends no other; it is made again with the next call
                print(f"a run failed: {error!r}", file=sys.stderr)


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a results file; none if there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main() -> int:
    """Runs the command and returns its exit status: 0, 1 if a run failed, or 2 for a mistake the user can mend."""
    options = arguments()
    try:
        study = Study.from_yaml(options.study)
        records = known_and_new(study, options)
    except PTuningError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(tables.settings_table(records)), end="\n\n")
    print("\n".join(tables.accuracy_table(records)), end="\n\n")
    if any("texts" in record for record in records):
        print("\n".join(tables.texts_table(records)), end="\n\n")
    if options.ours:
        print("\n".join(tables.differences_table(records, options.ours)))
    return int(len(records) < len(study.runs) and not options.tables)


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a YAML file, such as those of scripts/studies")
    parser.add_argument("--results", type=Path, help="the JSON lines; default: results.jsonl beside the YAML file")
    parser.add_argument("--assets", default="assets", help="where the tasks lie, or are fetched to")
    parser.add_argument("--processes", type=int, default=2, help="runs that are made at once")
    parser.add_argument("--ours", help="the method whose distance to each other one is printed")
    parser.add_argument("--tables", action="store_true", help="make no run: print the tables of what there is")
    return parser.parse_args()


def known_and_new(study: Study, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The records of a study, after the runs that are missing have been made and written down."""
    results = options.results or options.study.with_name("results.jsonl")
    known = {record["id"]: record for record in read(results)}
    missing = [] if options.tables else [run for run in study.runs if run.id not in known]
    for name in dict.fromkeys(run.task for run in missing):  # once, before processes that would all do it
        prepare(name, Path(options.assets))
    started = time.monotonic()
    for number, record in enumerate(made(missing, options.assets, options.processes), 1):
        known[record["id"]] = record
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        score = record["test"]["accuracy"]
        minutes = (time.monotonic() - started) / 60
        print(
            f"{number}/{len(missing)} {minutes:.1f} min {record['task']} {record['method']} {record['settings']} "
            f"seed {record['seed']}: {score:.3f}",
            flush=True,
        )
    named = [(run, known[run.id]) for run in study.runs if run.id in known]
    return [{**record, "method": run.method, "group": list(run.group)} for run, record in named]


if __name__ == "__main__":
    sys.exit(main())
