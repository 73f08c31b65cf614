#!/usr/bin/env python
"""A campaign of faults: broken, hostile and half-written files, and what ptuning makes of each.

Each case spoils a copy of a run, its rows or its config in one way, and runs one command on it. A case is clean if the
command ends in one line with status 2, or gives what it gives without the fault, or takes what are simply other rows
or settings. Not clean are a traceback, a command that does not end, and another answer without a word. Cases follow
from the seed and their number. Each result is a line of JSON, and a campaign that was interrupted goes on.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from campaign.cases import KINDS, Case
from campaign.world import World

import ptuning


def main() -> int:
    """Runs the campaign and prints its table; the exit status is 1 if a case was not clean."""
    options = arguments()
    code = digest()
    known = {record["name"]: record for record in read(options.results) if record["code"] == code}
    cases = [Case.of(options.seed, number) for number in range(options.cases)]
    with tempfile.TemporaryDirectory() as folder, options.results.open("a", encoding="utf-8") as file:
        world = World(Path(folder))
        for number, case in enumerate(cases, 1):
            if case.name in known:
                continue
            record = known[case.name] = {"name": case.name, "kind": case.kind, "code": code, **world.outcome(case)}
            file.write(json.dumps(record) + "\n")
            file.flush()
            if not record["is_clean"]:
                print(f"{number}: {case.name}: {record['what']}", file=sys.stderr, flush=True)
    own = [known[case.name] for case in cases]
    print("\n".join([*table(own), "", *accepted(cases, known)]))
    return int(not all(record["is_clean"] for record in own))


def table(records: list[dict]) -> list[str]:
    """The cases by kind, as a Markdown table."""
    names = ("refused", "as before", "taken", "not clean")
    lines = [f"| kind | cases | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for kind in KINDS:
        own = [record for record in records if record["kind"] == kind]
        counts = Counter(record["what"] if record["is_clean"] else "not clean" for record in own)
        lines.append(f"| {kind} | {len(own)} | {' | '.join(str(counts[name]) for name in names)} |")
    return lines


def accepted(cases: Sequence[Case], known: Mapping[str, Any]) -> list[str]:
    """Why the cases that were not refused are right, with their numbers; a case without a reason is named."""
    taken = [case for case in cases if known[case.name]["is_clean"] and known[case.name]["what"] != "refused"]
    reasons = Counter((case.kind, case.why or f"NO REASON: {case.name}") for case in taken)
    return [f"{number} x {kind}: {why}" for (kind, why), number in sorted(reasons.items())]


def digest() -> str:
    """A digest of the package's code: results of other code say nothing of this one."""
    files = sorted(Path(ptuning.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def read(path: Path) -> list[dict]:
    """The records of an earlier campaign."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="how many (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="what the cases follow from (default: 0)")
    parser.add_argument("--results", type=Path, default=Path("faults.jsonl"), help="the JSON lines")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
