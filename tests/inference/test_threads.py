"""Threads share one model: whatever they ask at once, each answer is the one that it has alone."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from families import tiny_backbone

from ptuning.data.task import Task
from ptuning.inference.prompt_library import PromptLibrary
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.model.kernels.interface import prefer_own_attention
from ptuning.prompts.soft_prompt import SoftPrompt

THREADS, CALLS = 8, 500
TEXTS = ("good", "a dull film", "two hours of rain", "the plot was very bad and the film dull", "")
LABELS = {"negative": " negative", "positive": " positive"}
NAMES = ("short", "long", "words", "written")


def prompts_of(backbone: Any, seed: int = 0) -> dict[str, SoftPrompt]:
    """Prompts of several lengths, templates and kinds of labels."""
    tasks = {
        "short": Task("{prompt:2}{text}", verbalizer=LABELS),
        "long": Task("{prompt:6}review: {text} sentiment", verbalizer=LABELS),
        "words": Task("{prompt:3}{text} is", verbalizer={"a": " very good", "b": " bad film and dull"}),
        "written": Task("{prompt:4}{text}", answer=" {label}"),
    }
    generator = torch.Generator().manual_seed(seed)
    scale = backbone.vocabulary_VH.std()
    return {
        name: SoftPrompt(
            torch.randn(task.num_virtual_tokens, backbone.width, generator=generator) * scale,
            task,
            backbone.name,
            backbone.fingerprint,
            task_type=backbone.task_type,
        )
        for name, task in tasks.items()
    }


def calls_of(chance: random.Random, count: int) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """What is asked: a method, texts, and a prompt a text."""
    methods = ("classify", "classify", "log_probs", "generate", "stream", "converse")
    calls = []
    for _ in range(count):
        method = chance.choice(methods)
        texts = tuple(chance.choices(TEXTS, k=chance.choice((1, 1, 2, 5))))
        names = NAMES[:3] if method in ("classify", "log_probs") else NAMES
        calls.append((method, texts, tuple(chance.choices(names, k=len(texts)))))
    return calls


def answer(lm: PromptedLM, method: str, texts: tuple[str, ...], names: tuple[str, ...]) -> Any:
    """A call's answer as plain data."""
    rows = [{"text": text, "label": "positive" if name != "words" else "a"} for text, name in zip(texts, names)]  # noqa: B905
    if method == "classify":
        return [each.probabilities for each in lm.classify(rows, names)]
    if method == "log_probs":
        return lm.log_probs(rows, names)
    if method == "generate":
        return lm.generate(rows, names, max_new_tokens=2)
    if method == "stream":
        found = [""] * len(rows)
        for piece in lm.generate(rows, names, max_new_tokens=2, stream=True):
            found[piece.row] += piece.text
        return found
    conversation = lm.conversation(names[0])
    return [conversation.send(text or "a", max_new_tokens=2) for text in texts[:2]]


def same(found: Any, expected: Any) -> bool:
    """Whether answers are equal, numbers but for rounding."""
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    return found == (pytest.approx(expected, abs=1e-6) if isinstance(expected, float) else expected)


def comers_and_goers(lm: PromptedLM, stopped: threading.Event) -> Callable[[], None]:
    """Adds, replaces and removes prompts until it is stopped; those that are asked for are replaced by their equals."""
    copies, extra = prompts_of(lm.backbone), prompts_of(lm.backbone, seed=1)

    def work() -> None:
        chance = random.Random(1)
        while not stopped.wait(0.005):
            name = chance.choice(NAMES)
            lm.prompts[name] = copies[name]
            lm.prompts[f"extra-{name}"] = extra[name]
            lm.classify([{"text": "a"}], "extra-short") if "extra-short" in lm.prompts else str(lm.prompts)
            for each in [each for each in lm.prompts if each.startswith("extra-")]:
                del lm.prompts[each]

    return work


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral", "t5"])
def test_eight_threads_answer_as_one(family: str) -> None:
    backbone = tiny_backbone(family)
    prefer_own_attention(backbone.model)
    lm = PromptedLM(backbone, prompts_of(backbone))
    count = CALLS if family == "llama" else CALLS // 20
    calls = [each for each in calls_of(random.Random(0), count) if family != "t5" or each[0] != "converse"]
    known = {each: answer(lm, *each) for each in dict.fromkeys(calls)}
    stopped = threading.Event()
    changing = threading.Thread(target=comers_and_goers(lm, stopped))
    changing.start()
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(lambda each: answer(lm, *each), calls))
    finally:
        stopped.set()
        changing.join()
    assert [each for each, own in zip(calls, found, strict=True) if not same(own, known[each])] == []


def test_a_stream_that_is_read_meanwhile_changes_nothing() -> None:
    backbone = tiny_backbone()
    prefer_own_attention(backbone.model)
    lm = PromptedLM(backbone, prompts_of(backbone))
    rows = [{"text": text} for text in TEXTS]
    alone, written = lm.classify(rows, "long"), lm.generate(rows, "written", max_new_tokens=30)
    pieces = [""] * len(rows)
    for piece in lm.generate(rows, "written", max_new_tokens=30, stream=True):
        pieces[piece.row] += piece.text
        for one, other in zip(lm.classify(rows, "long"), alone, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    assert pieces == written


def test_a_call_works_with_the_prompts_as_they_were_when_it_began() -> None:
    backbone = tiny_backbone()
    prompts, others = prompts_of(backbone), prompts_of(backbone, seed=1)
    lm = PromptedLM(backbone, prompts, batch_size=1)
    rows = [{"text": text} for text in TEXTS]
    written = lm.generate(rows, "written", max_new_tokens=5)
    pieces = [""] * len(rows)
    for piece in lm.generate(rows, "written", max_new_tokens=5, stream=True):
        lm.prompts["written"] = others["written"]
        pieces[piece.row] += piece.text
        lm.prompts.pop("long", None)
    assert pieces == written
    assert lm.generate(rows, "written", max_new_tokens=5) != written


def test_a_prompt_is_not_removed_while_a_call_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    prompts = prompts_of(backbone)
    lm, ready, removing = PromptedLM(backbone, prompts), PromptLibrary.ready, list[threading.Thread]()

    def ready_while_it_is_removed(library: PromptLibrary, name: str) -> Any:
        removing.append(threading.Thread(target=library.pop, args=(name,)))
        removing[-1].start()
        removing[-1].join(0.2)
        return ready(library, name)

    monkeypatch.setattr(PromptLibrary, "ready", ready_while_it_is_removed)
    assert lm.prompts.take(["short"])["short"].source is prompts["short"]
    removing[0].join()
    assert "short" not in lm.prompts


def test_names_are_listed_while_prompts_come_and_go() -> None:
    backbone = tiny_backbone()
    lm = PromptedLM(backbone, prompts_of(backbone))
    names = iter(lm.prompts)
    seen = [next(names)]
    lm.prompts["new"] = lm.prompts["short"]
    del lm.prompts["long"]
    assert [*seen, *names] == list(NAMES)


def test_training_steps_beside_answers_change_neither() -> None:
    from ptuning.forward.objective import loss

    backbone = tiny_backbone()
    lm = PromptedLM(backbone, prompts_of(backbone))
    batch = backbone.collate(backbone.coder(lm.task("long")).encode(_rows_with_labels()))
    rows = [{"text": text} for text in TEXTS]
    alone = lm.classify(rows, "long")

    def step(each: Any) -> torch.Tensor:
        prompt_PH = lm.prompts["long"].embeddings_PH.clone().requires_grad_()
        loss(each, prompt_PH, batch).backward()
        assert prompt_PH.grad is not None
        return prompt_PH.grad

    ways = [backbone, backbone.with_checkpointing()]
    expected = [step(each) for each in ways]
    with ThreadPoolExecutor(4) as pool:
        steps = [pool.submit(step, ways[i % 2]) for i in range(40)]
        answers = [pool.submit(lm.classify, rows, "long") for _ in range(40)]
        for i, each in enumerate(steps):
            torch.testing.assert_close(each.result(), expected[i % 2], rtol=0, atol=1e-6)
        for each in answers:
            for one, other in zip(each.result(), alone, strict=True):
                assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def _rows_with_labels() -> list[Any]:
    from ptuning.data.readers import Row

    return [Row({"text": text, "label": "positive"}, "a row") for text in TEXTS]


@pytest.mark.real_model
def test_threads_answer_as_one_on_the_real_model(real_backbone: Any) -> None:
    task = Task("{prompt:6}Review: {text}\nSentiment:", verbalizer=LABELS)
    prompt_PH = real_backbone.vocabulary_VH[100:106].float()
    prompt = SoftPrompt(prompt_PH, task, real_backbone.name, real_backbone.fingerprint)
    lm = PromptedLM(real_backbone, {"p": prompt})
    alone = [lm.classify([{"text": text}])[0].probabilities["positive"] for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: lm.classify([{"text": text}])[0].probabilities["positive"], TEXTS * 4))
    assert found == pytest.approx(alone * 4, abs=1e-5)
