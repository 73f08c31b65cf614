"""Prints families x behaviours as a table; with --peft PEFT's beside it, and what it fails.

Run by scripts/conformance.sh. Exit status 1 where ptuning fails anything.
"""

import argparse
import os
import sys
import time
import warnings
from collections import defaultdict
from importlib import metadata
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models gain nothing from threads
sys.path.insert(0, str(Path(__file__).parent.parent))

from behaviours import BEHAVIOURS, Behaviour, NotApplicable
from families import FAMILIES
from systems import Ours, Peft, System
from tqdm import tqdm
from transformers.utils import logging

PASSED, FAILED, NONE = "✓", "✗", "·"


def outcome(system: type[System], family: str, behaviour: Behaviour) -> tuple[str, str]:
    """A cell of the table, and why."""
    try:
        behaviour.check(system(family))
    except NotApplicable as reason:
        return NONE, str(reason)
    except Exception as error:  # whatever goes wrong is a failed cell
        return FAILED, f"{type(error).__name__}: {error}".split("\n")[0]
    return PASSED, ""


def table(system: type[System], cells: dict[tuple[str, str], tuple[str, str]]) -> list[str]:
    """The table's lines."""
    keys = [each.key for each in BEHAVIOURS]
    lines = [f"{system.name:<12} " + " ".join(f"{key:>3}" for key in keys)]
    for family in FAMILIES:
        lines.append(f"{family:<12} " + " ".join(f"{cells[family, key][0]:>3}" for key in keys))
    return lines


def failures(cells: dict[tuple[str, str], tuple[str, str]]) -> list[str]:
    """What failed: a line a behaviour, with the families and the first one's reason."""
    lines = []
    for behaviour in BEHAVIOURS:
        failed = [family for family in FAMILIES if cells[family, behaviour.key][0] == FAILED]
        applicable = [family for family in FAMILIES if cells[family, behaviour.key][0] != NONE]
        if failed:
            reason = cells[failed[0], behaviour.key][1]
            lines.append(f"{behaviour.key:>3} {behaviour.title}: fails on {len(failed)} of {len(applicable)} families")
            lines.append(f"    {failed[0]}: {reason[:150]}")
    return lines


def main() -> int:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peft", action="store_true", help="run PEFT too")
    systems: list[type[System]] = [Ours, Peft] if parser.parse_args().peft else [Ours]
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    started = time.perf_counter()
    cells: dict[str, dict[tuple[str, str], tuple[str, str]]] = defaultdict(dict)
    with tqdm(total=len(systems) * len(FAMILIES) * len(BEHAVIOURS), unit="check", disable=None) as bar:
        for system in systems:
            for family in FAMILIES:
                for behaviour in BEHAVIOURS:
                    cells[system.name][family, behaviour.key] = outcome(system, family, behaviour)
                    bar.update()
    for system in systems:
        print("\n".join(table(system, cells[system.name])), end="\n\n")
    print(f"{PASSED} holds   {FAILED} fails   {NONE} nothing of the kind there")
    print("\n".join(f"{each.key:>3}  {each.title}" for each in BEHAVIOURS))
    for system in systems:
        print(f"\n{system.name} {metadata.version(system.name.lower())} fails:")
        print("\n".join(failures(cells[system.name])) or "    nothing")
    print(f"\n{time.perf_counter() - started:.0f} s")
    return int(any(cell == FAILED for cell, _ in cells[Ours.name].values()))


if __name__ == "__main__":
    sys.exit(main())
