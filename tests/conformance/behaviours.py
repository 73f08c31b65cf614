"""What must be so on every architecture: one function a behaviour, which raises where it is not.

Each takes a system (ptuning, or PEFT for comparison) and holds it against the plain definition.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import definition
import torch
from definition import Line
from families import WINDOW
from systems import Ours, Peft, System, temporary_directory
from torch import Tensor

from ptuning.data.readers import Row
from ptuning.forward import objective
from ptuning.forward.paths import label_logits
from ptuning.forward.shared_prefix import can_share
from ptuning.forward.splice import splice
from ptuning.inference.prompted_lm import PromptedLM

TEXTS = ["the film", "a very dull plot and a very bad film was in the capital", "bright", "the film was good of"]
ANSWERS = [" good", "x", " very bad", " in"]
NUM_NEW = 6
WITH_POSITION_TABLE = ("gpt2", "opt")
WITHOUT_LINEAR_LAYERS = ("gpt2", "falcon", "mamba")  # whose weights are read otherwise, and stay as they are


class NotApplicable(Exception):  # noqa: N818 - no error
    """The family or the library has nothing of the kind."""


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """A line of the table."""

    key: str
    title: str
    check: Callable[[System], None]


BEHAVIOURS: list[Behaviour] = []


def behaviour(key: str, title: str) -> Callable[[Callable[[System], None]], Callable[[System], None]]:
    """Puts a check into the table."""

    def add(check: Callable[[System], None]) -> Callable[[System], None]:
        BEHAVIOURS.append(Behaviour(key, title, check))
        return check

    return add


def lines(system: System) -> list[Line]:
    """Rows of unequal lengths, with answers of unequal lengths."""
    return [definition.line(system.tokenizer, *each) for each in zip(TEXTS, ANSWERS, strict=True)]


def defined(system: System, prompt_PH: Tensor, rows: list[Line]) -> Tensor:
    """The definition's logits of each row by itself, `[N, V]`."""
    with torch.no_grad():
        return torch.cat([definition.logits(system.plain, prompt_PH, row) for row in rows])


def require_close(received: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Raises where two tensors differ in shape, or by more than rounding."""
    assert received.shape == expected.shape, f"shape {tuple(received.shape)}, expected {tuple(expected.shape)}"
    difference = float((received - expected).abs().max())
    assert difference < tolerance, f"off by {difference:.1e}, largest number {float(expected.abs().max()):.1f}"


def require_equal(received: list[Any], expected: list[Any]) -> None:
    """Raises at the first row that differs."""
    for i, (row, other) in enumerate(zip(received, expected, strict=True)):
        assert row == other, f"row {i}: {row}, expected {other}"


def require_same_gradient(received: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Raises where two gradients differ by more than rounding."""
    assert expected.norm() > 1e-4
    relative = float((received - expected).norm() / expected.norm())
    assert relative < tolerance, f"gradient off by {relative:.1e} of its norm"


def causal_only(system: System) -> None:
    """Raises `NotApplicable` for an encoder-decoder."""
    if system.model.config.is_encoder_decoder:
        raise NotApplicable("an encoder-decoder")


def ours_only(system: System) -> Ours:
    """The system as ours; raises `NotApplicable` for another."""
    if not isinstance(system, Ours):
        raise NotApplicable("no such thing there")
    return system


def _both_paths(system: System, num_virtual_tokens: int) -> None:
    ours = ours_only(system)
    causal_only(system)
    prompt_PH, rows = system.random_prompt(num_virtual_tokens), lines(system)
    batch = ours.backbone.collate(ours._examples(prompt_PH, rows))
    assert can_share(ours.backbone, prompt_PH, batch) == ours.backbone.supports_prefix_cache
    results = []
    for path in (splice, label_logits):
        own_PH = prompt_PH.clone().requires_grad_()
        logits_NV = path(ours.backbone, own_PH, batch)
        torch.nn.functional.cross_entropy(logits_NV, batch.targets_N).backward()
        results.append((logits_NV.detach(), own_PH.grad))
    definition_PH = prompt_PH.clone().requires_grad_()
    definition.loss(system.plain, definition_PH, rows).backward()
    for logits_NV, gradient_PH in results:
        require_close(logits_NV, defined(system, prompt_PH, rows))
        require_same_gradient(gradient_PH, definition_PH.grad)


@behaviour("1", "splice = shared prefix = definition, logits and gradients; both step aside where they must")
def paths(system: System) -> None:
    _both_paths(system, 4)


@behaviour("1w", "the same with a prompt longer than the sliding window")
def paths_beyond_window(system: System) -> None:
    if getattr(system.model.config, "sliding_window", None) != WINDOW:
        raise NotApplicable("no window")
    _both_paths(system, WINDOW + 3)


@behaviour("2", "no, right and left padding: the same scores")
def padding(system: System) -> None:
    prompt_PH, rows = system.random_prompt(4), lines(system)
    for side in ("right", "left"):
        with torch.no_grad():
            require_close(system.logits(prompt_PH, rows, side), defined(system, prompt_PH, rows))


@behaviour("2b", "a batch of one = a batch of many")
def batches(system: System) -> None:
    prompt_PH, rows = system.random_prompt(WINDOW + 3), lines(system)
    with torch.no_grad():
        alone = torch.cat([system.logits(prompt_PH, [row]) for row in rows])
        require_close(alone, defined(system, prompt_PH, rows))
        require_close(system.logits(prompt_PH, rows), alone)


@behaviour("3", "embeddings of real tokens as the prompt = those tokens in the text")
def real_tokens(system: System) -> None:
    words = (310, 42, 299, 310)
    prompt_PH = system.model.get_input_embeddings()(torch.tensor(words)).detach()
    rows = lines(system)
    as_text = [Line((*words, *row.ids), row.answer_ids) for row in rows]
    with torch.no_grad():
        require_close(system.logits(prompt_PH, rows), defined(system, prompt_PH[:0], as_text))


@behaviour("4", "cached generation = uncached greedy = argmax of the forward pass")
def generation(system: System) -> None:
    for num_virtual_tokens in (4, WINDOW + 3):
        prompt_PH = system.random_prompt(num_virtual_tokens)
        rows = [definition.line(system.tokenizer, text) for text in TEXTS]
        expected = [definition.greedy(system.plain, prompt_PH, row.ids, NUM_NEW) for row in rows]
        assert len({tuple(each) for each in expected}) > 1
        require_equal(system.generate(prompt_PH, TEXTS, NUM_NEW), expected)
        require_equal([system.generate(prompt_PH, [text], NUM_NEW)[0] for text in TEXTS], expected)


@behaviour("4b", "beams in a batch = beams of each row")
def beams(system: System) -> None:
    prompt_PH = system.random_prompt(4)
    expected = [_generated_alone(system, prompt_PH, text, num_beams=3) for text in TEXTS]
    require_equal(system.generate(prompt_PH, TEXTS, NUM_NEW, num_beams=3), expected)


@behaviour("4s", "sampling with a fixed seed = the plain model's with that seed")
def sampling(system: System) -> None:
    prompt_PH = system.random_prompt(4)
    for text in TEXTS[:2]:
        expected = _generated_alone(system, prompt_PH, text, do_sample=True, top_k=20)
        require_equal(system.generate(prompt_PH, [text], NUM_NEW, do_sample=True, top_k=20), [expected])


@behaviour("4c", "a static cache = a growing one")
def static_cache(system: System) -> None:
    prompt_PH = system.random_prompt(4)
    expected = [_generated_alone(system, prompt_PH, text) for text in TEXTS]
    require_equal(system.generate(prompt_PH, TEXTS, NUM_NEW, cache_implementation="static"), expected)


@behaviour("4t", "a second turn from the cache = the whole conversation from the beginning")
def second_turn(system: System) -> None:
    causal_only(system)
    for num_virtual_tokens in (4, WINDOW + 3):
        prompt_PH = system.random_prompt(num_virtual_tokens)
        before, answer = system.second_turn(prompt_PH, TEXTS[0], " and the plot", NUM_NEW)
        first = definition.line(system.tokenizer, TEXTS[0]).ids
        said = [*first, *definition.greedy(system.plain, prompt_PH, first, NUM_NEW)]
        assert before[: len(said)] == said
        require_equal([answer], [definition.greedy(system.plain, prompt_PH, tuple(before), NUM_NEW)])


@behaviour("4f", "text that is streamed = the answers")
def streaming(system: System) -> None:
    ours = ours_only(system)
    prompt_PH = system.random_prompt(4)
    lm = PromptedLM(ours.backbone, {"p": ours.soft_prompt(prompt_PH)})
    told = [""] * len(TEXTS)
    for piece in lm.generate([{"text": text} for text in TEXTS], max_new_tokens=NUM_NEW, stream=True):
        told[piece.row] += piece.text
    rows = [definition.line(system.tokenizer, text).ids for text in TEXTS]
    expected = [definition.greedy(system.plain, prompt_PH, ids, NUM_NEW) for ids in rows]
    require_equal([list(map(int, text.split())) for text in told], expected)


def _generated_alone(system: System, prompt_PH: Tensor, text: str, **options: Any) -> list[int]:
    ids = definition.line(system.tokenizer, text).ids
    return definition.generated(system.plain, prompt_PH, ids, NUM_NEW, **options)


@behaviour("5", "rows with different prompts in one batch = each by itself")
def mixed_batch(system: System) -> None:
    prompts = [system.random_prompt(length, seed) for seed, length in enumerate((4, WINDOW + 3, 2))]
    choice, rows = [0, 1, 2, 1], lines(system)
    with torch.no_grad():
        received = system.mixed(prompts, choice, rows)
        expected = [defined(system, prompts[k], [row]) for k, row in zip(choice, rows, strict=True)]
    require_close(received, torch.cat(expected))


@behaviour("5t", "rows with different templates and slots in one batch, scored and continued = each by itself")
def mixed_templates(system: System) -> None:
    ours = ours_only(system)
    templates = ("{prompt:4}{text}", "{prompt:9}review: {text}{prompt:2} is", "{text}{prompt:3}:", "{text}")
    prompts = {}
    for seed, template in enumerate(templates):
        whole = ours.soft_prompt(system.random_prompt(1))
        task = dataclasses.replace(whole.task, template=template)
        embeddings_PH = (
            system.random_prompt(task.num_virtual_tokens, seed) if task.num_virtual_tokens else torch.zeros(0, 32)
        )
        prompts[template] = dataclasses.replace(whole, task=task, embeddings_PH=embeddings_PH)
    lm = PromptedLM(ours.backbone, prompts)
    rows = [{"text": text, "answer": answer} for text, answer in zip(TEXTS, ANSWERS, strict=True)]
    scores, texts = [], []
    for row, name in zip(rows, templates, strict=True):
        (example,) = ours.backbone.coder(lm.task(name)).encode([Row(row, "row")])
        line_, prompt_PH = Line(tuple(example.ids), tuple(example.answer_ids)), prompts[name].embeddings_PH
        scores.append(-definition.loss(system.plain, prompt_PH, [line_]) * len(example.answer_ids))
        texts.append(" ".join(map(str, definition.greedy(system.plain, prompt_PH, line_.ids, NUM_NEW))))
    require_close(torch.tensor(lm.log_probs(rows, list(templates))), torch.stack(scores).detach())
    require_equal(lm.generate(rows, list(templates), max_new_tokens=NUM_NEW), texts)


@behaviour("6", "a disabled prompt, after it has been used = the base model")
def disabling(system: System) -> None:
    prompt_PH, rows = system.random_prompt(4), lines(system)
    with torch.no_grad():
        require_close(system.disabled(prompt_PH, rows), defined(system, prompt_PH[:0], rows))


@behaviour("6n", "nothing stays on the model: no attribute, no hook, no setting, no other number")
def leaving_nothing(system: System) -> None:
    prompt_PH, rows = system.random_prompt(4), lines(system)
    before, expected = _digest(system.model), _run_plainly(system.plain, rows)
    with torch.no_grad():
        system.logits(prompt_PH, rows)
        system.disabled(prompt_PH, rows)
    system.generate(prompt_PH, TEXTS, NUM_NEW)
    _without_dropout(system).train_step(prompt_PH, rows)
    if isinstance(system, Ours):
        system.train_step(prompt_PH, rows, is_checkpointed=True)
    require_close(_run_plainly(system.model, rows), expected, tolerance=1e-5)
    assert _digest(system.model) == before
    left = sorted(_traces(system.model) - _traces(system.plain))
    assert not left, f"left on the model: {', '.join(left[:3])}"


def _run_plainly(model: Any, rows: list[Line]) -> Tensor:
    no_prompt = torch.zeros(0, model.get_input_embeddings().embedding_dim)
    with torch.no_grad():
        return torch.cat([definition.logits(model, no_prompt, row) for row in rows])


def _traces(model: Any) -> set[str]:
    """All that an object could have left on a model: attributes, hooks, settings."""
    found = set()
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found.add(f"{name}.{key}")
            if key.endswith("_hooks"):
                found.add(f"{name}.{key}: {len(value)} hooks")
    settings = {**model.generation_config.to_dict(), **model.config.to_dict()}
    return found | {f"{key}={value}" for key, value in settings.items() if "dropout" not in key}


@behaviour("7", "activation checkpointing: the same gradient, less kept; never with a cache")
def checkpointing(system: System) -> None:
    prompt_PH, rows = system.random_prompt(4), lines(system) * 2
    _without_dropout(system)
    measured = {}
    for is_checkpointed in (False, True):
        kept = [0]

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept[0] += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, gradient_PH = system.train_step(prompt_PH, rows, is_checkpointed)
        measured[is_checkpointed] = (loss, gradient_PH, kept[0])
    require_close(measured[True][0], measured[False][0])
    require_same_gradient(measured[True][1], measured[False][1])
    assert measured[True][2] < 0.8 * measured[False][2], f"kept {measured[True][2]} of {measured[False][2]} bytes"


@behaviour("8", "the base is frozen: no gradient, no changed byte, no dropout")
def frozen(system: System) -> None:
    prompt_PH, rows = system.random_prompt(4), lines(system)
    before = _digest(system.model)
    system.model.train()
    subject = type(system).__new__(type(system))
    subject.__dict__.update(system.__dict__)
    if isinstance(system, Ours):
        subject.backbone = type(system.backbone).of(system.model, system.tokenizer, system.backbone.name)
    loss, _ = subject.train_step(prompt_PH, rows)
    require_close(loss, definition.loss(system.plain, prompt_PH, rows).detach())
    assert all(parameter.grad is None for parameter in system.model.parameters())
    assert not any(parameter.requires_grad for parameter in system.model.parameters())
    assert _digest(system.model) == before


def _digest(model: Any) -> str:
    digest = hashlib.sha256()
    for _, tensor in sorted(model.state_dict().items()):
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


@behaviour("9", "saved and loaded: the same bits; each library reads what the other wrote")
def saving(system: System) -> None:
    prompt_PH, rows = system.random_prompt(4), lines(system)
    family = system.model.config.model_type
    other = (Peft if isinstance(system, Ours) else Ours)(family)
    pairs: list[tuple[System, System]] = [(system, system), (system, other), (other, system)]
    with temporary_directory() as place:
        for writer, reader in pairs:
            path = Path(place) / f"{writer.name} to {reader.name}"
            writer.save(prompt_PH, path)
            assert torch.equal(reader.load(path), prompt_PH), path.name
    with torch.no_grad():
        theirs = torch.cat([other.logits(prompt_PH, [row]) for row in rows])
        ours = torch.cat([system.logits(prompt_PH, [row]) for row in rows])
    require_close(ours, theirs)


@behaviour("10", "the position the loss is computed at is the position that is scored")
def position(system: System) -> None:
    prompt_PH, rows = system.random_prompt(4), lines(system)
    loss, gradient_PH = _without_dropout(system).train_step(prompt_PH, rows)
    definition_PH = prompt_PH.clone().requires_grad_()
    expected = definition.loss(system.plain, definition_PH, rows)
    expected.backward()
    require_close(loss, expected.detach())
    require_same_gradient(gradient_PH, definition_PH.grad)
    if isinstance(system, Ours):
        batch = system.backbone.collate(system._examples(prompt_PH, rows))
        with torch.no_grad():
            scores_B, _ = objective.answer_log_probs(system.backbone, prompt_PH, batch)
        require_close(-scores_B.sum() / len(batch.targets_N), expected.detach())


def _without_dropout(system: System) -> System:
    """The system over a model whose layers drop nothing: that is another behaviour's."""
    for holder in (system.model.config, *system.model.modules()):
        for name in ("p", "dropout", "attention_dropout", "hidden_dropout"):
            if isinstance(vars(holder).get(name), float):
                setattr(holder, name, 0.0)
    return system


@behaviour("11", "prompt and text beyond the position table: a clear error, before anything runs")
def too_long(system: System) -> None:
    limit = system.backbone.max_positions
    has_table = system.model.config.model_type in WITH_POSITION_TABLE
    if limit is None or not (has_table or isinstance(system, Ours)):  # without one it is our rule, and not an error
        raise NotApplicable("no position table")
    runs: list[Any] = []
    hook = system.model.register_forward_pre_hook(lambda *_: runs.append(1))
    row = Line((*range(3, 3 + limit - 2),), (5,))
    try:
        system.logits(system.random_prompt(4), [row])
        said = "no error"
    except Exception as error:  # whatever a library raises, it must name the limit
        said = f"{type(error).__name__}: {error}"
    finally:
        hook.remove()
    assert f"at most {limit}" in said, said
    assert not runs, "the model was run"


@behaviour("12", "an int8 base (weight-only): trains; the gradient's cosine with fp32's is above 0.999")
def int8(system: System) -> None:
    family = system.model.config.model_type
    # Weights of the size that models are initialised with (transformers' initializer_range); and all experts are taken,
    # since a router's choice between two jumps where any rounding decides it.
    changes: dict[str, Any] = {"std": 0.02}
    if hasattr(system.model.config, "num_experts_per_tok"):
        changes["num_experts_per_tok"] = 4
    reference = _without_dropout(type(system)(family, **changes))
    prompt_PH, rows = reference.random_prompt(4), lines(system)
    _, expected_PH = reference.train_step(prompt_PH, rows)
    if family in WITHOUT_LINEAR_LAYERS:
        raise NotApplicable("no linear layers to quantize")
    quantized = _without_dropout(type(system)(family, is_quantized=True, **changes))
    first, gradient_PH = quantized.train_step(prompt_PH, rows)
    cosine = float(torch.nn.functional.cosine_similarity(gradient_PH.flatten(), expected_PH.flatten(), dim=0))
    assert cosine > 0.999, f"cosine {cosine:.5f}"
    learned_PH = prompt_PH.clone()
    for _ in range(5):
        loss, gradient_PH = quantized.train_step(learned_PH, rows)
        learned_PH = learned_PH - gradient_PH / gradient_PH.norm()
    assert loss < first, f"loss {float(first):.4f} to {float(loss):.4f}"
