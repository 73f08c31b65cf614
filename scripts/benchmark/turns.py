"""Runs the two sides in turns, a process each, and sums up what they measured."""

import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from benchmark.sides import NEW_TOKENS, Case, Ours, Side, Theirs

_side: Side


Kind = Callable[[Case], Side]


def _load(kind: Kind, case: Case) -> None:
    global _side
    _side = kind(case)


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_side, method)(*arguments)


Call = Callable[..., Any]


@contextmanager
def process(kind: Kind, case: Case) -> Iterator[Call]:
    """A side in a process of its own; what it yields calls a method there and waits."""
    with ProcessPoolExecutor(1, get_context("spawn"), _load, (kind, case)) as pool:
        yield lambda method, *arguments: pool.submit(_call, method, arguments).result()


@contextmanager
def both(case: Case) -> Iterator[tuple[Call, Call]]:
    """Both sides, ptuning and PEFT, which have been seen to compute the same loss for the same prompt."""
    with process(Ours, case) as ours, process(Theirs, case) as theirs:
        prompt_PH, expected = theirs("prompt_and_loss", 0)
        found, rounding = ours("loss_of", prompt_PH, 0), 1e-4 if case.dtype == "float32" else 3e-2
        if abs(found - expected) > rounding * max(1.0, expected):
            raise SystemExit(f"{case}: ptuning's loss is {found}, PEFT's {expected}; expected the same")
        yield ours, theirs


def compared(case: Case, rounds: int) -> dict[str, Any]:
    """Everything that is measured of a case: each side's numbers, one a round, and memory once."""
    with both(case) as (ours, theirs):
        sides = {"ours": ours, "peft": theirs}
        measured: dict[str, Any] = {"step_bytes": {name: call("step_bytes", 0) for name, call in sides.items()}}
        measured["matmul_flops_per_second"], rows = [], case.batch_size
        for k in range(1, rounds + 1):
            useful, flops = ours("num_useful", k), ours("least_flops", k)
            seconds = in_turns(sides, "step_seconds", k)
            limit = statistics.median(ours("matmul_flops_per_second") for _ in range(3))
            _note(measured, "train_tokens_per_second", {name: useful / each for name, each in seconds.items()})
            _note(measured, "fraction_of_limit", {name: flops / each / limit for name, each in seconds.items()})
            measured["matmul_flops_per_second"].append(limit)
            taken = in_turns(sides, "classify_seconds", k)
            _note(measured, "classify_rows_per_second", {name: rows / each for name, each in taken.items()})
            for num_rows in (1, 8):
                times = in_turns(sides, "generate_seconds", k, num_rows)
                rates = {name: num_rows * (NEW_TOKENS - 1) / (all_ - one) for name, (one, all_) in times.items()}
                _note(measured, f"first_token_seconds_{num_rows}", {name: one for name, (one, _) in times.items()})
                _note(measured, f"generate_tokens_per_second_{num_rows}", rates)
    return measured


def in_turns(sides: dict[str, Call], method: str, *arguments: Any) -> dict[str, Any]:
    """What each side measures, one after the other, each warmed first: the system puts away what an idle one holds."""
    found = {}
    for name, call in sides.items():
        call("warm", method, *arguments)
        found[name] = call(method, *arguments)
    return found


def step_costs(case: Case, rounds: int) -> dict[str, Any]:
    """Seconds and bytes of a training step alone, for how cost grows."""
    found: dict[str, Any] = {}
    kinds: dict[str, Kind] = {"ours": Ours, "peft": Theirs}
    for name, kind in kinds.items():
        with process(kind, case) as call:
            num_bytes = call("step_bytes", 0)
            found[name] = {"seconds": [call("step_seconds", k) for k in range(1, rounds + 1)], "bytes": num_bytes}
    return found


def _note(measured: dict[str, Any], what: str, values: dict[str, float]) -> None:
    for name, value in values.items():
        measured.setdefault(what, {}).setdefault(name, []).append(value)


def ratio(measured: dict[str, Any], what: str) -> tuple[float, float, float]:
    """Ours over PEFT's, of each round: median, least, most."""
    ours, theirs = measured[what]["ours"], measured[what]["peft"]
    ratios = [ours / theirs] if isinstance(ours, int) else [a / b for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)
