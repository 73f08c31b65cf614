#!/usr/bin/env python
"""Eight prompts among 32 rows, against PEFT switching adapters: equal scores first, then rows per second, in turns.

Usage: python scripts/bench_many_prompts.py [ROUNDS] [DTYPE]. "One forward" pads all rows to the longest of them; "as it
comes" is ptuning's default, which parts the rows by length.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import peft
import torch

import ptuning
from ptuning.rows import read_rows

BASE, PROMPTS, ROWS, VIRTUAL = "assets/smollm2-135m-instruct", 8, 32, 20
TASK = ptuning.Task(
    "{prompt:20}Review: {text}\nSentiment:", verbalizer={"negative": " negative", "positive": " positive"}
)
rounds, dtype = int([*sys.argv, "7"][1]), [*sys.argv, "7", "float32"][2 + (len(sys.argv) < 2)]
backbone = ptuning.Backbone.from_pretrained(BASE, dtype=dtype)
coder, about = backbone.coder(TASK), (TASK, backbone.name, backbone.fingerprint)
starts = [ptuning.initializers.from_vocabulary(backbone.vocabulary_VH, VIRTUAL, seed=seed) for seed in range(PROMPTS)]
lm = ptuning.PromptedLM(backbone, {str(k): ptuning.SoftPrompt(start_PH, *about) for k, start_PH in enumerate(starts)})
rows = [dict(row.values) for row in read_rows("assets/movie_reviews/test.csv", "test", TASK.columns)[:ROWS]]
names, label_ids = [str(i % PROMPTS) for i in range(ROWS)], coder.label_ids
theirs = ptuning.Backbone.from_pretrained(BASE, dtype=dtype).model
with tempfile.TemporaryDirectory() as directory:
    for name, prompt in lm.prompts.items():
        saved = prompt.save(f"{directory}/{name}")
        first = name == "0"
        theirs = peft.PeftModel.from_pretrained(theirs, saved, name) if first else theirs
        first or theirs.load_adapter(saved, name)


def as_it_comes() -> list[float]:
    """One call."""
    return [each.scores["negative"] for each in lm.classify(rows, names)]


def separately() -> list[float]:
    """A call a prompt, with its own rows."""
    answers = {name: iter(lm.classify(rows[int(name) :: PROMPTS], name)) for name in lm.prompts}
    return [next(answers[name]).scores["negative"] for name in names]


@torch.no_grad()
def one_forward() -> list[float]:
    """One call of the model."""
    examples = coder.encode_questions([ptuning.data.Row(row, "row") for row in rows])
    scores_BC = ptuning.objective.label_scores(backbone, lm.prompts.of_rows(names), examples, [label_ids] * ROWS)
    return scores_BC.softmax(dim=1)[:, 0].tolist()


@torch.no_grad()
def peft_switching() -> list[float]:
    """One adapter after the other, each with its rows in one batch."""
    scores = torch.zeros(ROWS)
    for name in lm.prompts:
        texts = [f"Review: {row['text']}\nSentiment:" for row in rows[int(name) :: PROMPTS]]
        inputs = backbone.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        theirs.set_adapter(name)
        last_B = VIRTUAL + inputs["attention_mask"].sum(dim=1) - 1
        logits_BV = theirs(**inputs).logits[torch.arange(len(texts)), last_B]
        scores[int(name) :: PROMPTS] = logits_BV[:, [ids[0] for ids in label_ids]].float().softmax(dim=1)[:, 0]
    return scores.tolist()


def rows_per_second(answer: Callable[[], list[float]]) -> float:
    """Of one call."""
    started = time.perf_counter()
    return len(answer()) / (time.perf_counter() - started)


mixed = torch.tensor(as_it_comes())
for answer in (separately, one_forward, peft_switching):
    print(f"largest difference from {answer.__name__}: {float((torch.tensor(answer()) - mixed).abs().max()):.1e}")
ways = (as_it_comes, one_forward, separately, peft_switching)
speeds: dict[Callable[[], list[float]], list[float]] = {way: [] for way in ways}
for _ in range(rounds):
    for way in ways:
        speeds[way].append(rows_per_second(way))
for way in ways:
    ratios = sorted(ours / peft for ours, peft in zip(speeds[way], speeds[peft_switching], strict=True))
    spread = f"{statistics.median(ratios):.2f} times PEFT ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"{way.__name__}: {statistics.median(speeds[way]):.1f} rows per second, {spread}")
print(f"{lm.prompts.infos()[0].num_bytes / 1e6:.2f} MB held a prompt; {dtype}, {torch.get_num_threads()} threads")
