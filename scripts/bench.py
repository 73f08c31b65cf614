#!/usr/bin/env python
"""ptuning against PEFT: training, memory, classification, generation, and the fraction of the machine's own limit."""

import argparse
import json
import platform
import statistics
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from benchmark.sides import Case
from benchmark.turns import compared, ratio

ROWS = {
    "train_tokens_per_second": "training, useful tokens/s",
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
    lines = [f"{case.dtype}, P={case.num_virtual}, batch {case.batch_size}; multiplies {limit:.0f} GFLOP/s", ""]
    lines += ["| | ptuning | PEFT | ptuning / PEFT |", "|---|---|---|---|"]
    for what, name in ROWS.items():
        both = measured[what]["ours"], measured[what]["peft"]
        scale = 1e9 if what == "step_bytes" else 1
        ours, theirs = (f"{(each if scale > 1 else statistics.median(each)) / scale:.4g}" for each in both)
        lines.append(f"| {name} | {ours} | {theirs} | {'{:.2f} ({:.2f} to {:.2f})'.format(*ratio(measured, what))} |")
    return [*lines, ""]


def main() -> None:
    """Measures and prints, a case at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="assets/smollm2-135m-instruct")
    parser.add_argument("--data", default="assets/movie_reviews/train.csv")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--virtual", nargs="+", type=int, default=[20, 100])
    parser.add_argument("--batch", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="everything that was measured")
    parser.add_argument("--png", metavar="FILE", help="a bar chart of the largest batch (needs matplotlib)")
    options = parser.parse_args()
    if min(options.batch) < 8:
        parser.error(f"--batch {min(options.batch)}: expected at least 8, the rows that are written; raise it")
    versions = {name: metadata.version(name) for name in ("ptuning", "peft", "torch", "transformers")}
    machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    print(f"{versions}, {machine}, {options.rounds} rounds in turns, medians", flush=True)
    found = []
    for dtype in options.dtype:
        for num_virtual in options.virtual:
            for batch_size in options.batch:
                case = Case(options.base, options.data, dtype, num_virtual, batch_size)
                measured = compared(case, options.rounds)
                found.append({**vars(case), **measured})
                print("\n".join(table(case, measured)), flush=True)
                if options.json:
                    record = {"versions": versions, "machine": machine, "cases": found}
                    Path(options.json).write_text(json.dumps(record, indent=1), encoding="utf-8")
    if options.png:
        from benchmark.plots import bench_plot

        bench_plot([case for case in found if case["batch_size"] == max(options.batch)], options.png)


if __name__ == "__main__":
    main()
