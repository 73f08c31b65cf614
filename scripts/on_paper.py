#!/usr/bin/env python
"""What a training step costs on a machine that is not here: memory, time, and the parts that it must be run in.

From the formulas of `benchmark.cost` and a model's configuration; nothing is run.
"""

import argparse

import torch
from benchmark import cost
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig


def main() -> None:
    """Prints the sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a model directory or hub name (default: the shape of Llama 7B)")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a row")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--virtual", type=int, default=100)
    parser.add_argument("--memory", type=float, default=80e9, help="bytes (default: one H100's)")
    parser.add_argument("--flops", type=float, default=989e12, help="operations/s (default: one H100's, dense bf16)")
    parser.add_argument("--share", type=float, default=0.5, help="of those operations that is reached")
    options = parser.parse_args()
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(options.model) if options.model else LlamaConfig()
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    rows = cost.Rows(options.virtual, [options.tokens] * options.batch, options.batch)
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    prefix = cost.prefix_bytes(model, options.virtual)
    prefix_kept = cost.kept_bytes(model, cost.Rows(options.virtual, [], 0))
    row = cost.kept_bytes(model, cost.Rows(options.virtual, [options.tokens], 1)) - prefix_kept
    gathered = 4 * prefix  # its keys and values once more, and their gradients, both in float32
    room = options.memory - weights - prefix_kept - gathered
    num_rows = min(int(room // row), options.batch)
    seconds = cost.training_flops(model, rows) / (options.flops * options.share)
    print(f"{sum(each.numel() for each in model.parameters()) / 1e9:.2f} billion weights, {options.batch} rows of")
    print(f"{options.tokens} tokens behind {options.virtual} virtual ones, bf16:")
    print(f"weights               {weights / 1e9:8.1f} GB")
    print(f"prefix cache          {prefix / 1e9:8.3f} GB a prompt")
    print(f"kept for backward     {row / 1e9:8.2f} GB a row, {row * options.batch / 1e9:.0f} GB for all at once")
    print(f"operations            {cost.training_flops(model, rows) / 1e15:8.2f} x 10^15 a step")
    rate = options.batch * options.tokens / seconds
    print(f"time at {options.share:.0%} of peak   {seconds:8.1f} s a step, {rate:,.0f} tokens/s")
    if num_rows < 1:
        print("not even one row fits: set train.gradient_checkpointing, or model.quantization: int8 or int4")
    elif num_rows < options.batch:
        limit = num_rows * (options.tokens + options.virtual)
        print(f"{num_rows} rows fit at once: set train.max_batch_tokens: {limit}; the step stays the same step")
    else:
        print("all rows fit at once")


if __name__ == "__main__":
    main()
