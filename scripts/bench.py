#!/usr/bin/env python
"""ptuning against PEFT: training, memory, classification, generation, and the fraction of the machine's own limit."""

import argparse
import functools
import itertools
import json
import platform
import statistics
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from benchmark import profile
from benchmark.shapes import SHAPES
from benchmark.sides import Case
from benchmark.turns import Plan, compared, ratio

ROWS = {
    "train_tokens_per_second": "training, useful tokens/s",
    "first_step_seconds": "first step of all, s",
    "step_bytes": "peak memory above the loaded model, GB",
    "classify_rows_per_second": "classification, rows/s",
    "first_token_seconds_1": "time to first token, batch 1, s",
    "first_token_seconds_8": "time to first token, batch 8, s",
    "generate_tokens_per_second_1": "generation, tokens/s, batch 1",
    "generate_tokens_per_second_8": "generation, tokens/s, batch 8",
    "fraction_of_limit": "fraction of the matrix-multiply limit in training",
}


def table(case: Case, measured: dict[str, Any]) -> list[str]:
    """Medians of both sides, and the ratio of each round's: median (least to most)."""
    limit = statistics.median(measured["matmul_flops_per_second"]) / 1e9
    model = "" if case.shape is None else f"random {case.shape}, "
    text = "" if case.num_text is None else f"{case.num_text} tokens of text, "
    where = measured["about"]["ours"]["device"].get("gpu", case.device)
    what = f"{model}{case.dtype}, {where}, P={case.num_virtual}, {text}batch {case.batch_size}"
    lines = [f"{what}; multiplies {limit:.0f} GFLOP/s", ""]
    lines += ["| | ptuning | PEFT | ptuning / PEFT |", "|---|---|---|---|"]
    for what, name in ROWS.items():
        both = measured[what]["ours"], measured[what]["peft"]
        scale = 1e9 if what == "step_bytes" else 1
        ours, theirs = (f"{(each if scale > 1 else statistics.median(each)) / scale:.4g}" for each in both)
        lines.append(f"| {name} | {ours} | {theirs} | {'{:.2f} ({:.2f} to {:.2f})'.format(*ratio(measured, what))} |")
    return [*lines, ""]


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="assets/smollm2-135m-instruct")
    parser.add_argument("--data", default="assets/movie_reviews/train.csv")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="a random Llama of this shape; the base's tokenizer")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--virtual", nargs="+", type=int, default=[20, 100])
    parser.add_argument("--batch", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--text", type=int, metavar="N", help="tokens that every row's text is cut or repeated to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="batches a round; by default 1, on a GPU 10, all of them new")
    parser.add_argument(
        "--apart", action="store_true", help="one side after the other: for models that don't fit twice"
    )
    parser.add_argument("--profile", action="store_true", help="also what a step is made of")
    parser.add_argument("--json", metavar="FILE", help="everything that was measured")
    parser.add_argument("--png", metavar="FILE", help="a bar chart of the largest batch (needs matplotlib)")
    options = parser.parse_args()
    if min(options.batch) < 8:
        parser.error(f"--batch {min(options.batch)}: expected at least 8, the rows that are written; raise it")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: expected a GPU that torch can use; leave it out to measure on the CPU")
    return options


def main() -> None:
    """Measures and prints, a case at a time."""
    options = arguments()
    versions = {name: metadata.version(name) for name in ("ptuning", "peft", "torch", "transformers")}
    machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    has_gpu = options.device != "cpu"
    plan = Plan(
        rounds=options.rounds,
        steps=options.steps or (10 if has_gpu else 1),
        warm_steps=5 if has_gpu else 0,
        profile=options.profile,
        together=not options.apart,
    )
    print(f"{versions}, {machine}, {options.rounds} rounds in turns, medians", flush=True)
    found: list[dict[str, Any]] = []

    def keep(case: Case, measured: dict[str, Any]) -> None:
        if options.json:
            cases = [*found, {**vars(case), **vars(plan), **measured}]
            record = {"versions": versions, "machine": machine, "cases": cases}
            Path(options.json).write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")

    for dtype, num_virtual, batch_size in itertools.product(options.dtype, options.virtual, options.batch):
        case = Case(
            options.base,
            options.data,
            dtype,
            num_virtual,
            batch_size,
            num_text=options.text,
            device=options.device,
            shape=options.shape,
        )
        measured = compared(case, plan, functools.partial(keep, case))
        keep(case, measured)
        found.append({**vars(case), **measured})
        print("\n".join(table(case, measured)), flush=True)
        if options.profile:
            print("\n".join(profile.table(measured["profile"])), flush=True)
    if options.png:
        from benchmark.plots import bench_plot

        bench_plot([case for case in found if case["batch_size"] == max(options.batch)], options.png)


if __name__ == "__main__":
    main()
