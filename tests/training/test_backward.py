"""The gradient of rows taken a part at a time equals that of all rows at once."""

import pytest
import torch
from families import FAMILIES, NUM_POSITIONS, tiny_backbone

from ptuning.data.examples import Example
from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.errors import DataError
from ptuning.forward import objective
from ptuning.model import Backbone
from ptuning.prompts import encoders, initializers
from ptuning.training import backward as gradient

TEXTS = ["the film", "a very dull plot and very bad film was the capital of the film", "bright", "good", "dull and bad"]


def examples_of(backbone: Backbone, template: str) -> list[Example]:
    rows = [
        Row({"text": text, "label": word}, "row")
        for text, word in zip(TEXTS, [" good", "x", " b", "tin", "y"], strict=True)
    ]
    return backbone.coder(Task(template)).encode(rows)


def encoder_of(backbone: Backbone, kind: str = "residual") -> encoders.PromptEncoder:
    torch.manual_seed(0)
    encoder = encoders.build(kind, initializers.from_vocabulary(backbone.vocabulary_VH.float(), 5), 16)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return encoder


def gradient_of(encoder: encoders.PromptEncoder) -> torch.Tensor:
    """That of all parameters, end to end; taken away."""
    found = [parameter.grad.flatten() for parameter in encoder.parameters() if parameter.grad is not None]
    encoder.zero_grad()
    return torch.cat(found) if found else torch.empty(0)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("template", ["{prompt:5}the {text} is", "{text} is{prompt:5}"])
def test_parts_add_up_to_the_gradient_of_all_rows(family: str, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone(family)
    examples, encoder = examples_of(backbone, template), encoder_of(backbone)
    loss = objective.loss_sum(backbone, encoder(), backbone.collate(examples), "splice")
    (loss * 0.5).backward()
    expected = gradient_of(encoder)
    longest, sizes, collate = max(map(len, examples)), [], type(backbone).collate
    monkeypatch.setattr(
        type(backbone),
        "collate",
        lambda self, rows: sizes.append(len(rows) * max(map(len, rows))) or collate(self, rows),
    )
    for limits in ({}, {"batch_size": 2}, {"max_batch_tokens": longest}):
        total = gradient.backward_in_parts(backbone, encoder(), examples, 0.5, **limits)
        assert total == pytest.approx(loss.item(), rel=1e-5)
        assert_same(gradient_of(encoder), expected)
        assert max(sizes) <= limits.get("max_batch_tokens", max(sizes))
        assert len(sizes) > 1 or not limits
        sizes.clear()


def test_a_conditioned_encoder_gets_the_same_gradient() -> None:
    backbone = tiny_backbone()
    examples, encoder = examples_of(backbone, "{prompt:5}the {text} is"), encoder_of(backbone, "conditioned")
    objective.loss_sum(backbone, encoder, backbone.collate(examples)).backward()
    expected = gradient_of(encoder)
    gradient.backward_in_parts(backbone, encoder, examples, batch_size=2)
    assert_same(gradient_of(encoder), expected)


def test_the_prompt_is_run_once_and_the_encoder_backward_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    examples, encoder = examples_of(backbone, "{prompt:5}the {text} is"), encoder_of(backbone)
    assert backbone.supports_packing
    gradient.backward_in_parts(backbone, encoder(), examples, batch_size=1)  # what it can do is found out by running it
    lines, run, passes = [], type(backbone).run, []
    monkeypatch.setattr(
        type(backbone), "run", lambda self, **i: lines.append(i["inputs_embeds"].shape[1]) or run(self, **i)
    )
    next(iter(encoder.parameters())).register_post_accumulate_grad_hook(lambda _: passes.append(1))
    gradient.backward_in_parts(backbone, encoder(), examples, batch_size=1)
    assert len(lines) == 1 + len(examples)
    assert lines[0] == backbone.collate(examples).num_prefix_tokens > 5  # the virtual tokens and "the"
    assert len(passes) == 1


def test_a_row_beyond_the_limit_says_so_before_anything_is_run() -> None:
    backbone = tiny_backbone()
    examples, encoder = examples_of(backbone, "{prompt:5}{text}"), encoder_of(backbone)
    with pytest.raises(DataError, match=r"row 1 of .* tokens, .* expected at most 9, the tokens that a batch may have"):
        gradient.backward_in_parts(backbone, encoder(), examples, max_batch_tokens=9)
    assert not len(gradient_of(encoder))


def test_gradients_of_many_parts_gather_in_float32() -> None:
    backbone = tiny_backbone()
    backbone.model.bfloat16()
    examples, encoder = examples_of(backbone, "{prompt:5}the {text} is") * 40, encoder_of(backbone)
    found = []
    for batch_size in (None, 1):
        gradient.backward_in_parts(backbone, encoder(), examples, batch_size=batch_size)
        found.append(gradient_of(encoder))
    exact = torch.zeros_like(found[0])
    for k in range(len(TEXTS)):
        gradient.backward_in_parts(backbone, encoder(), [examples[k]] * 2)
        exact += 20 * gradient_of(encoder)
    assert (found[1] - exact).norm() < 0.05 * exact.norm()


def test_a_beginning_beyond_the_models_positions_says_so_before_it_is_run() -> None:
    backbone = tiny_backbone("gpt2")
    prompt_PH = initializers.from_vocabulary(backbone.vocabulary_VH, NUM_POSITIONS + 4).requires_grad_()
    rows = [Example([*range(-1, -NUM_POSITIONS - 5, -1), token], [3]) for token in (5, 6)]
    with pytest.raises(DataError, match=rf"a row of {NUM_POSITIONS + 4} tokens.* at most {NUM_POSITIONS}"):
        gradient.backward_in_parts(backbone, prompt_PH, rows, batch_size=1)
