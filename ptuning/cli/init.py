"""`ptuning init`."""

import argparse
from pathlib import Path
from typing import Any

from ptuning.errors import DataError

_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    about = "write a commented config for your own data"
    parser = commands.add_parser("init", help=about, description=about)
    parser.add_argument("data", metavar="DATA_FILE", help="rows with answers: csv, tsv, json(l) or parquet")
    parser.add_argument("--model", default=_MODEL, help=f"the base model (default: {_MODEL})")
    parser.add_argument("--output", metavar="FILE", help="the config (default: the data file's name, .yaml, here)")
    parser.set_defaults(run=run, prompt=None)


def run(parsed: argparse.Namespace) -> None:
    """Writes the config, and says what it found."""
    from ptuning.config import Proposal, stem
    from ptuning.data import is_code, read_rows
    from ptuning.files import whole_file

    data = Path(parsed.data)
    target = Path(parsed.output or f"{stem(data)}.yaml")
    if any("\udc80" <= each <= "\udcff" for each in parsed.data):  # bytes that are not UTF-8, which YAML cannot hold
        raise DataError(f"{data}, whose name is no text", "a name in UTF-8", "Rename the file")
    if target.exists():
        raise DataError(f"{target} exists", "a new file", "Name another with --output, or move it away")
    rows = read_rows(parsed.data, "train", ())
    proposal = Proposal.of(rows)
    with whole_file(target) as beside:
        beside.write_text(proposal.config(data, parsed.model, len(rows), target), encoding="utf-8")
    kind = f"one of {len(proposal.labels)} labels" if proposal.labels else "written"
    print(f"{len(rows):,} rows; shown: {', '.join(proposal.shown)}; asked for: {proposal.asked}, {kind}")
    num_without = len(rows) - proposal.labels.total() if proposal.labels else 0
    if num_without:
        print(f"{num_without:,} rows have no {proposal.asked}: remove them before training")
    codes = [label for label in proposal.labels or () if is_code(label)]
    if codes:
        told = f"{', '.join(codes[:3])}{', ...' if len(codes) > 3 else ''}"
        print(f"labels that look like codes ({told}): write words that say what they mean in data.verbalizer")
    print(f"saved: {target}\nlook at it, then: ptuning train --config {target}")
