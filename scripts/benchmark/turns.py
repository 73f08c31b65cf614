"""Runs the two sides in turns, a process each, and sums up what they measured."""

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from benchmark.sides import NEW_TOKENS, Case, Ours, Side, Theirs

_side: Side


Kind = Callable[[Case], Side]
KINDS: dict[str, Kind] = {"ours": Ours, "peft": Theirs}


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
        pool.submit(int)  # loads now, while others do
        yield lambda method, *arguments: pool.submit(_call, method, arguments).result()


@dataclass(frozen=True)
class Plan:
    """How often each thing is measured."""

    rounds: int
    """Each side measures everything once a round."""
    steps: int = 1
    """Batches a round."""
    warm_steps: int = 0
    """Other batches before them, so that those which are timed are new, as in training; 0: the same ones."""
    profile: bool = False
    """Whether to look into a step."""
    together: bool = True
    """Whether both models are loaded and take turns; else one side is measured after the other."""

    def batches(self, k: int) -> tuple[range, range]:
        """Those that warm up and those that are timed in round k, from 0; batch 0 is the first step's."""
        first = 1 + k * (self.warm_steps + self.steps)
        timed = range(first + self.warm_steps, first + self.warm_steps + self.steps)
        return range(first, timed.start) or timed, timed

    @property
    def num_batches(self) -> int:
        """How many the rounds take."""
        return self.batches(self.rounds)[0].start


Keep = Callable[[dict[str, Any]], None]


def compared(case: Case, plan: Plan, keep: Keep = lambda measured: None) -> dict[str, Any]:
    """Everything that is measured of a case: each side's numbers, one a round; memory and the first step once.

    Args:
        case: What is measured.
        plan: How often.
        keep: Called with what has been measured so far, after each round.
    """
    measured: dict[str, Any] = {}
    groups = [("ours", "peft")] if plan.together else [("peft",), ("ours",)]
    for names in groups:  # PEFT's prompt is what ptuning's loss is checked with
        with _processes(case, names) as sides:
            _start(case, sides, measured)
            for k in range(plan.rounds):
                for measure, (name, call) in itertools.product((_train, _classify, _generate), sides.items()):
                    measure(name, call, plan.batches(k), measured)
                keep(_rated(case, plan, measured))
            if plan.profile:
                for name, call in sides.items():
                    measured.setdefault("profile", {})[name] = call("profile", plan.num_batches)
    return _rated(case, plan, measured)


@contextmanager
def _processes(case: Case, names: Sequence[str]) -> Iterator[dict[str, Call]]:
    if not names:
        yield {}
        return
    with process(KINDS[names[0]], case) as call, _processes(case, names[1:]) as others:
        yield {names[0]: call, **others}


def _start(case: Case, sides: dict[str, Call], measured: dict[str, Any]) -> None:
    """The first step, and that both sides compute the same loss with the same prompt."""
    for call in sides.values():
        call("release")  # waits until it has loaded: nothing else is to run during a first step
    for name, call in sides.items():
        _note(measured, "first_step_seconds", name, call("first_step_seconds"))
        measured.setdefault("about", {})[name] = call("about")
        call("release")
    if "peft" in sides:
        prompt_PH, measured["loss"] = sides["peft"]("prompt_and_loss", 0)
        measured["prompt"] = prompt_PH
    if "ours" in sides:
        _require_same(case, sides["ours"]("loss_of", measured.pop("prompt"), 0), measured["loss"])


def _require_same(case: Case, found: float, expected: float) -> None:
    rounding = 1e-4 if case.dtype == "float32" else 3e-2
    if abs(found - expected) > rounding * max(1.0, expected):
        raise SystemExit(f"{case}: ptuning's loss is {found}, PEFT's {expected}; expected the same")


Batches = tuple[range, range]


def _train(name: str, call: Call, batches: Batches, measured: dict[str, Any]) -> None:
    _note(measured, "train_seconds", name, warmed(call, "step_seconds", batches))
    measured.setdefault("step_bytes", {})[name] = call("step_bytes")
    if name == "ours":
        limits = [call("matmul_flops_per_second") for _ in range(3)]
        measured.setdefault("matmul_flops_per_second", []).append(statistics.median(limits))
        measured.setdefault("useful_tokens", []).append(call("num_useful", batches[1]))
        measured.setdefault("least_flops", []).append(call("least_flops", batches[1]))
        call("release")


def _classify(name: str, call: Call, batches: Batches, measured: dict[str, Any]) -> None:
    _note(measured, "classify_seconds", name, warmed(call, "classify_seconds", batches))


def _generate(name: str, call: Call, batches: Batches, measured: dict[str, Any]) -> None:
    few = batches[0][:1], batches[1][:2]
    for num_rows in (1, 8):
        first, last = warmed(call, "generate_seconds", few, num_rows)
        _note(measured, f"first_token_seconds_{num_rows}", name, first)
        _note(measured, f"generate_tokens_per_second_{num_rows}", name, num_rows * (NEW_TOKENS - 1) / (last - first))


def warmed(call: Call, method: str, batches: Batches, *arguments: Any) -> Any:
    """What a side measures, warmed first: the system puts away what an idle one holds."""
    warm, timed = batches
    call("warm", method, warm, *arguments)
    found = call(method, timed, *arguments)
    call("release")
    return found


def _note(measured: dict[str, Any], what: str, name: str, value: float) -> None:
    measured.setdefault(what, {}).setdefault(name, []).append(value)


def _rated(case: Case, plan: Plan, measured: dict[str, Any]) -> dict[str, Any]:
    """What was measured, with seconds made rates where both are known."""
    rated = {what: value for what, value in measured.items() if what != "prompt"}
    rows = case.batch_size * plan.steps
    for what, amounts, taken in (
        ("train_tokens_per_second", measured.get("useful_tokens", []), "train_seconds"),
        ("classify_rows_per_second", itertools.repeat(rows), "classify_seconds"),
        ("least_flops_per_second", measured.get("least_flops", []), "train_seconds"),
    ):
        pairs = {name: zip(amounts, seconds, strict=False) for name, seconds in measured[taken].items()}
        rated[what] = {name: [amount / each for amount, each in both] for name, both in pairs.items()}
    limits, speeds = measured.get("matmul_flops_per_second", []), rated.pop("least_flops_per_second")
    rated["fraction_of_limit"] = {
        name: [each / limit for each, limit in zip(all_, limits, strict=False)] for name, all_ in speeds.items()
    }
    return rated


def step_costs(case: Case, rounds: int) -> dict[str, Any]:
    """Seconds and bytes of a training step alone, for how cost grows."""
    found: dict[str, Any] = {}
    for name, kind in KINDS.items():
        with process(kind, case) as call:
            call("first_step_seconds")
            num_bytes = call("step_bytes")
            found[name] = {"seconds": [call("step_seconds", [k]) for k in range(1, rounds + 1)], "bytes": num_bytes}
    return found


def ratio(measured: dict[str, Any], what: str) -> tuple[float, float, float]:
    """Ours over PEFT's, of each round: median, least, most."""
    ours, theirs = measured[what]["ours"], measured[what]["peft"]
    ratios = [ours / theirs] if isinstance(ours, int) else [a / b for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)
