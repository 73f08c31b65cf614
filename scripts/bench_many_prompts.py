#!/usr/bin/env python
"""Eight prompts among 32 rows, against PEFT switching adapters: equal scores first, then rows per second, in turns."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import peft
import torch

import ptuning
from ptuning.data import read_rows

PROMPTS, ROWS, VIRTUAL = 8, 32, 20
TASK = ptuning.Task(
    "{prompt:20}Review: {text}\nSentiment:", verbalizer={"negative": " negative", "positive": " positive"}
)
Answer = Callable[[], list[float]]


def prompted(backbone: ptuning.Backbone) -> ptuning.PromptedLM:
    """The model with untrained prompts, which cost what others cost."""
    about, vocabulary_VH = (TASK, backbone.name, backbone.fingerprint), backbone.vocabulary_VH
    starts = [ptuning.initializers.from_vocabulary(vocabulary_VH, VIRTUAL, seed=seed) for seed in range(PROMPTS)]
    return ptuning.PromptedLM(backbone, {str(k): ptuning.SoftPrompt(each, *about) for k, each in enumerate(starts)})


def with_peft(lm: ptuning.PromptedLM, model: Any) -> Any:
    """Another copy of the model with the same prompts as PEFT's adapters."""
    with tempfile.TemporaryDirectory() as directory:
        saved = {name: prompt.save(f"{directory}/{name}") for name, prompt in lm.prompts.items()}
        adapted = peft.PeftModel.from_pretrained(model, saved.pop("0"), "0")
        for name, path in saved.items():
            adapted.load_adapter(path, name)
    return adapted


@torch.no_grad()
def switching(model: Any, tokenizer: Any, rows: list[dict[str, str]], label_ids: list[int]) -> list[float]:
    """One adapter after the other, each with its rows in one batch; the first label's probability."""
    scores = torch.zeros(ROWS)
    for k in range(PROMPTS):
        texts = [f"Review: {row['text']}\nSentiment:" for row in rows[k::PROMPTS]]
        inputs = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        model.set_adapter(str(k))
        last_B = VIRTUAL + inputs["attention_mask"].sum(dim=1) - 1
        logits_BV = model(**inputs).logits[torch.arange(len(texts)), last_B]
        scores[k::PROMPTS] = logits_BV[:, label_ids].float().softmax(dim=1)[:, 0]
    return scores.tolist()


def ways(base: str, data: str, dtype: str) -> tuple[ptuning.PromptedLM, dict[str, Answer]]:
    """How the rows can be answered; PEFT's way is the last."""
    backbone = ptuning.Backbone.from_pretrained(base, dtype=dtype)
    lm, coder = prompted(backbone), backbone.coder(TASK)
    rows = [dict(row.values) for row in read_rows(data, "test", TASK.columns)[:ROWS]]
    names, label_ids = [str(i % PROMPTS) for i in range(ROWS)], coder.label_ids
    theirs = with_peft(lm, ptuning.Backbone.from_pretrained(base, dtype=dtype).model)

    def together() -> list[float]:
        return [each.probabilities["negative"] for each in lm.classify(rows, names)]

    def separately() -> list[float]:
        answers = {name: iter(lm.classify(rows[int(name) :: PROMPTS], name)) for name in lm.prompts}
        return [next(answers[name]).probabilities["negative"] for name in names]

    def peft_switching() -> list[float]:
        return switching(theirs, backbone.tokenizer, rows, [ids[0] for ids in label_ids])

    return lm, {each.__name__: each for each in (together, separately, peft_switching)}


def rows_per_second(answer: Answer) -> float:
    """Of one call."""
    started = time.perf_counter()
    return len(answer()) / (time.perf_counter() - started)


def main() -> None:
    """Compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--base", default="assets/smollm2-135m-instruct")
    parser.add_argument("--data", default="assets/movie_reviews/test.csv")
    options = parser.parse_args()
    lm, answers = ways(options.base, options.data, options.dtype)
    reference = torch.tensor(answers["together"]())
    for name in list(answers)[1:]:
        difference = float((torch.tensor(answers[name]()) - reference).abs().max())
        print(f"largest difference from {name}: {difference:.1e}")
    speeds = [{name: rows_per_second(answer) for name, answer in answers.items()} for _ in range(options.rounds)]
    for name in answers:
        ratios = sorted(each[name] / each["peft_switching"] for each in speeds)
        spread = f"{statistics.median(ratios):.2f} times PEFT ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{name}: {statistics.median(each[name] for each in speeds):.1f} rows per second, {spread}")
    held = lm.prompts.infos()[0].num_bytes / 1e6
    print(f"{held:.2f} MB held a prompt; {options.dtype}, {torch.get_num_threads()} threads, {options.rounds} rounds")


if __name__ == "__main__":
    main()
