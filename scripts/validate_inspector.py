#!/usr/bin/env python
"""Checks the inspector on the real model, with prompts whose meaning is known (run scripts/demo.sh first)."""

import argparse
import dataclasses
import itertools
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import ptuning
from ptuning.data import Row, read_rows
from ptuning.inspection import DECORATIVE, ECHO, FAITHFUL, NO_EFFECT, PARTIAL, Settings, Vocabulary, wayward

FACTS = {
    "The colour of the door is": "green",
    "The animal in the garden is a": "goat",
    "The month of the fair is": "October",
    "The drink on the table is": "milk",
}
OTHERS = ("red", "dog", "May", "tea")  # answers that are wrong in every row
BEFORE = (
    "",
    "It rains. ",
    "We had lunch. ",
    "Today is Monday. ",
    "The shop is open. ",
    "They came by train. ",
    "Some were glad. ",
    "It is cold. ",
    "The road is long. ",
    "We sat down. ",
    "All is well. ",
    "Then it was noon. ",
    "She reads a book. ",
    "He is old. ",
    "I am at home. ",
    "Nobody knows why. ",
    "The bus is late. ",
    "Look. ",
)
PULL = 0.3  # cost 0.6 points of accuracy on 500 validation rows and 1.0 cost 2.0; both decoded to the third text
TEXTS = (
    " The museum opens at nine and closes at five, and the garden is free for all every Sunday in the month of May.",
    " Boil the water, add a pinch of salt and cook the rice for twelve minutes, then drain it and serve it warm.",
    " The river runs from the mountains to the sea, past three old towns, two bridges and a long green valley.",
)


def told(backbone: ptuning.Backbone) -> tuple[ptuning.SoftPrompt, list[Row]]:
    """A prompt close to the embeddings of a text that states facts, and rows that ask for these facts."""
    text = "".join(f" {fact} {answer}." for fact, answer in FACTS.items())
    ids = backbone.tokenizer(text, add_special_tokens=False).input_ids
    exact_PH = Vocabulary.of(backbone).rows(ids)
    noise_PH = torch.nn.functional.normalize(torch.randn(exact_PH.shape, generator=torch.Generator().manual_seed(0)))
    labels = {answer: f" {answer}" for answer in (*FACTS.values(), *OTHERS)}
    task = ptuning.Task(f"{{prompt:{len(ids)}}}\n{{text}}", verbalizer=labels)
    asked = itertools.product(BEFORE, FACTS.items())
    rows = [Row({"text": before + fact, "label": answer}, fact) for before, (fact, answer) in asked]
    return ptuning.SoftPrompt(exact_PH + 0.3 * exact_PH.norm(dim=1, keepdim=True) * noise_PH, task), rows


def shuffled(config: ptuning.RunConfig, rows: Sequence[Row], directory: Path) -> ptuning.SoftPrompt:
    """A prompt tuned on rows with shuffled labels."""
    labels = [row.values["label"] for row in rows]
    random.Random(0).shuffle(labels)
    given = [{"text": row.values["text"], "label": label} for row, label in zip(rows, labels, strict=True)]
    run = dataclasses.replace(config.train, output_dir=str(directory / "shuffled"))
    result = ptuning.train(dataclasses.replace(config, train=run), resume=True, rows={"train": given})
    return result.prompt


def main() -> None:
    """Prints a verdict for each prompt; exit status 1 when one is not as expected, or a pull failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/movie_reviews.yaml")
    parser.add_argument("--rows", type=int, default=500, help="rows of the test set to read, 50 or more")
    options = parser.parse_args()
    if options.rows < 50:
        parser.error(f"--rows {options.rows}: 50 or more are needed to judge")
    config = ptuning.RunConfig.from_yaml(options.config)
    backbone = ptuning.Backbone.from_pretrained(config.model.name_or_path, config.model.dtype)
    sources = (config.data.train or "", config.data.test or "")
    train, all_test = (read_rows(each, "train", config.data.task.columns) for each in sources)
    test = random.Random(0).sample(all_test, min(options.rows, len(all_test)))
    demo = ptuning.SoftPrompt.load(f"{config.train.output_dir}/prompt")

    unexpected = 0

    def show(name: str, prompt: ptuning.SoftPrompt, rows: list[Row], *expected: str) -> None:
        nonlocal unexpected
        verdict = ptuning.inspect(prompt, backbone, [row.values for row in rows]).verdict
        unexpected += verdict.word not in expected
        print(
            f"| {name} | {verdict.word} | {verdict.gain} | {verdict.fidelity} | {verdict.share_init:.2f} |", flush=True
        )

    print("| prompt | verdict | gain over random tokens | kept by the text | decodes to init |\n|---|---|---|---|---|")
    none = (NO_EFFECT, DECORATIVE, ECHO)  # verdicts that do not invite anyone to believe the text
    show("a text that helps, a little off", *told(backbone), FAITHFUL)
    show("the demo's", demo, test, *none)
    show("labels shuffled", shuffled(config, train, Path("runs/validate")), test, NO_EFFECT, DECORATIVE)
    ids = backbone.tokenizer(" Is this review of a film positive or negative?", add_special_tokens=False).input_ids
    ids = [ids[p % len(ids)] for p in range(demo.num_virtual_tokens)]
    untrained = dataclasses.replace(demo, embeddings_PH=Vocabulary.of(backbone).rows(ids), init={"token_ids": ids})
    show("a text, untrained", untrained, test, ECHO, NO_EFFECT)
    settings = Settings(learning_rate=1e-2)
    for text in TEXTS:
        found = wayward(demo, backbone, train, all_test, text, [PULL], settings)
        free, pulled = found.table
        unexpected += pulled["f1"] <= 0.9 or free["accuracy"] - pulled["accuracy"] > 0.02
        scores = f"free {free['accuracy']:.3f}, pulled {pulled['accuracy']:.3f}, F1 {pulled['f1']:.2f}"
        unknown = dataclasses.replace(found.prompts[1], init={})  # without its start, which would give it away
        show(f"pulled to {text[1:24]!r}: {scores}", unknown, test, PARTIAL, *none)
    sys.exit(1 if unexpected else 0)


if __name__ == "__main__":
    try:
        main()
    except ptuning.PTuningError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
