"""What `gpu_check.sh` holds its measurements against, and the table of both. Reads bench.py's JSON; loads no torch."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Case = dict[str, Any]
"""What bench.py wrote of one case."""

TRAINING = {"smollm2": 4.0, "1b": 3.0, "1b-p100": 4.0, "1b-long": 1.5, "8b-long": 1.4}
"""A part of the check, and how many times as fast as PEFT it must train."""


@dataclass(frozen=True)
class Bar:
    """One number that a part must reach."""

    part: str
    """The part's name, which is its JSON file's."""
    name: str
    """What is measured."""
    bound: float
    """The least, or the most, that it may be."""
    measure: Callable[[Case], float]
    """Finds it in what was measured."""
    is_most: bool = False
    """Whether the bound is the most."""

    def is_met_by(self, value: float | None) -> bool:
        """Whether the number is good enough; one that was not measured is not."""
        return value is not None and (value <= self.bound if self.is_most else value >= self.bound)


def bars(parts: Sequence[str] = tuple(TRAINING)) -> Iterator[Bar]:
    """All bars of some parts."""
    for part in parts:
        yield Bar(part, "training, useful tokens/s over PEFT's", TRAINING[part], _over("train_tokens_per_second"))
        if part.startswith("8b"):
            yield Bar(part, "fraction of the multiply limit", 0.55, _own("fraction_of_limit"))
        yield Bar(part, "memory over PEFT's", 0.6, _over("step_bytes"), is_most=True)
        classification = 1.0 if part.endswith("long") else 1.5
        yield Bar(part, "classification, rows/s over PEFT's", classification, _over("classify_rows_per_second"))
        for rows in (1, 8):
            faster, rate = _under(f"first_token_seconds_{rows}"), _over(f"generate_tokens_per_second_{rows}")
            yield Bar(part, f"first token, batch {rows}, times as fast as PEFT's", 1.0, faster)
            yield Bar(part, f"generation, batch {rows}, tokens/s over PEFT's", 1.0, rate)
        yield Bar(part, "first step, s", 3.0, _own("first_step_seconds"), is_most=True)


def _over(what: str) -> Callable[[Case], float]:
    """The median of the rounds' ratios of ptuning's to PEFT's."""

    def found(case: Case) -> float:
        ours, theirs = (each if isinstance(each, list) else [each] for each in (case[what]["ours"], case[what]["peft"]))
        return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))

    return found


def _under(what: str) -> Callable[[Case], float]:
    """How many times as fast ptuning is, from seconds: the median of the rounds' ratios of PEFT's to ptuning's."""

    def found(case: Case) -> float:
        pairs = zip(case[what]["ours"], case[what]["peft"], strict=True)
        return statistics.median(theirs / ours for ours, theirs in pairs)

    return found


def _own(what: str) -> Callable[[Case], float]:
    return lambda case: statistics.median(case[what]["ours"])


def measured(bar: Bar, cases: dict[str, Case]) -> float | None:
    """The bar's number; None if its part has not got so far."""
    try:
        return bar.measure(cases[bar.part])
    except (KeyError, ValueError, statistics.StatisticsError):  # no such part, side, or full set of rounds
        return None


def table(cases: dict[str, Case], parts: Sequence[str] = tuple(TRAINING)) -> list[str]:
    """A line a bar: what it asks, what was measured, and whether that is enough."""
    lines = ["| part | bar | asked | measured | |", "|---|---|---|---|---|"]
    for bar in bars(parts):
        value = measured(bar, cases)
        asked = f"at {'most' if bar.is_most else 'least'} {bar.bound:g}"
        shown = "not measured" if value is None else f"{value:.3g}"
        lines.append(f"| {bar.part} | {bar.name} | {asked} | {shown} | {'met' if bar.is_met_by(value) else 'MISSED'} |")
    return lines


def num_missed(cases: dict[str, Case], parts: Sequence[str] = tuple(TRAINING)) -> int:
    """How many bars are not met."""
    return sum(not bar.is_met_by(measured(bar, cases)) for bar in bars(parts))


def read(folder: Path, parts: Sequence[str]) -> dict[str, Case]:
    """The case in each part's file, where there is one."""
    files = {part: folder / f"{part}.json" for part in parts}
    return {part: json.loads(file.read_text())["cases"][0] for part, file in files.items() if file.exists()}


def main() -> None:
    """Prints the table; status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the parts' JSON files are")
    parser.add_argument("--parts", nargs="*", default=list(TRAINING), choices=list(TRAINING))
    parser.add_argument("--show-only", action="store_true", help="status 0 whatever is missed")
    options = parser.parse_args()
    cases = read(options.folder, options.parts)
    print("\n".join(table(cases, options.parts)))
    sys.exit(0 if options.show_only else min(1, num_missed(cases, options.parts)))


if __name__ == "__main__":
    main()
