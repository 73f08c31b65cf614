"""Attention by a name of our own: shared keys as they are, the same logits, and nothing left behind."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from families import ATTENTION, tiny_backbone
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ptuning.model import Backbone
from ptuning.model.kernels import switch
from ptuning.model.kernels.interface import attending_by, attends_by_name, prefer_own_attention
from ptuning.model.kernels.switch import fast_kernels


class Seen(TorchFunctionMode):
    """Numbers of heads of queries and of keys that attention is given."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: set[tuple[int, int]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            self.heads.add((args[0].shape[1], args[1].shape[1]))
        return func(*args, **(kwargs or {}))


def logits_and_gradient(backbone: Backbone, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    states = backbone.embed(torch.randint(3, 200, (2, 7), generator=torch.Generator().manual_seed(0)))
    leaf = states.detach().requires_grad_()
    logits = backbone.model(inputs_embeds=leaf, attention_mask=mask, use_cache=False).logits
    logits.square().mean().backward()
    assert leaf.grad is not None
    return logits.detach(), leaf.grad


def as_loaded(family: str) -> Backbone:
    """A tiny model as ptuning loads it."""
    backbone = tiny_backbone(family)
    prefer_own_attention(backbone.model)
    return backbone


@pytest.mark.parametrize("family", sorted(ATTENTION))
@pytest.mark.parametrize("padding", [None, 2])
def test_logits_and_gradients_stay_the_same(family: str, padding: int | None) -> None:
    mask = None if padding is None else torch.tensor([[1] * 7, [1] * (7 - padding) + [0] * padding])
    expected = logits_and_gradient(tiny_backbone(family), mask)
    backbone = as_loaded(family)
    runs = []
    for has_linear in (True, False):
        with fast_kernels(attends_by_name=attends_by_name(backbone.model), has_linear=has_linear):
            runs.append(logits_and_gradient(backbone, mask))
    for each in (*runs, logits_and_gradient(backbone, mask)):
        for one, other in zip(each, expected, strict=True):
            seen = slice(None) if padding is None else slice(0, 7 - padding)
            torch.testing.assert_close(one[:, seen], other[:, seen], rtol=0, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral"])
def test_keys_are_not_repeated(family: str) -> None:
    backbone, mask = as_loaded(family), torch.tensor([[1] * 7, [1] * 6 + [0]])
    with Seen() as plain:
        logits_and_gradient(backbone, mask)
    with fast_kernels(attends_by_name=True), Seen() as fast:
        logits_and_gradient(backbone, mask)
    assert (plain.heads, fast.heads) == ({(4, 4)}, {(4, 2)})


def test_no_function_of_torch_is_intercepted_where_products_are_torchs() -> None:
    backbone, mask = as_loaded("llama"), torch.tensor([[1] * 7, [1] * 6 + [0]])
    with fast_kernels(attends_by_name=True, has_linear=False):
        assert not torch._C._len_torch_function_stack()
        found, _ = logits_and_gradient(backbone, mask)
    torch.testing.assert_close(found, logits_and_gradient(backbone, mask)[0], rtol=0, atol=1e-5)


def test_other_threads_run_the_model_as_before() -> None:
    backbone, mask = as_loaded("llama"), torch.tensor([[1] * 7, [1] * 6 + [0]])
    expected, _ = logits_and_gradient(backbone, mask)
    with fast_kernels(attends_by_name=True), ThreadPoolExecutor(1) as others:
        fast, _ = logits_and_gradient(backbone, mask)
        plain, _ = others.submit(logits_and_gradient, backbone, mask).result()
    torch.testing.assert_close(plain, expected, rtol=0, atol=0)
    torch.testing.assert_close(fast, expected, rtol=0, atol=1e-5)


def test_one_of_two_threads_may_end_first() -> None:
    backbone, mask = as_loaded("llama"), torch.tensor([[1] * 7, [1] * 6 + [0]])
    expected, _ = logits_and_gradient(backbone, mask)

    def whole() -> None:
        with fast_kernels(attends_by_name=True):
            logits_and_gradient(backbone, mask)

    with fast_kernels(attends_by_name=True), ThreadPoolExecutor(1) as others:
        others.submit(whole).result()
        with Seen() as seen:
            found, _ = logits_and_gradient(backbone, mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert seen.heads == {(4, 2)}


def test_a_mode_that_fails_is_off() -> None:
    backbone, mask = as_loaded("llama"), torch.tensor([[1] * 7, [1] * 6 + [0]])
    with pytest.raises(ZeroDivisionError), attending_by(functional.scaled_dot_product_attention):
        raise ZeroDivisionError
    with Seen() as seen:
        logits_and_gradient(backbone, mask)
    assert seen.heads == {(4, 4)}


def test_a_run_changes_no_setting_of_the_model() -> None:
    backbone = as_loaded("llama")
    before = backbone.model.config._attn_implementation
    assert attends_by_name(backbone.model)
    with fast_kernels(attends_by_name=True):
        assert backbone.model.config._attn_implementation == before
    assert "ptuning" not in backbone.model.config.to_json_string()


@pytest.mark.parametrize(("family", "attention"), [("llama", "eager"), ("falcon", "sdpa")])
def test_another_attention_is_left_alone(family: str, attention: str) -> None:
    backbone = tiny_backbone(family)
    backbone.model.set_attn_implementation(attention)
    prefer_own_attention(backbone.model)
    assert backbone.model.config._attn_implementation == attention


@pytest.mark.parametrize("has_linear", [False, True])
@pytest.mark.parametrize("is_loaded", [False, True])
def test_checkpointed_layers_run_again_by_the_same_kernels_in_another_thread(
    is_loaded: bool, has_linear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_calls = 0

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        nonlocal num_calls
        num_calls += 1
        return attention(*args, **options)

    attention = switch.attention
    monkeypatch.setattr(switch, "attention", counted)
    backbone = (as_loaded if is_loaded else tiny_backbone)("llama").with_checkpointing()
    leaf = torch.randn(2, 7, backbone.width, requires_grad=True)
    mask = torch.tensor([[1] * 7, [1] * 6 + [0]])
    with fast_kernels(attends_by_name=attends_by_name(backbone.model), has_linear=has_linear):
        loss = backbone.model(inputs_embeds=leaf, attention_mask=mask, use_cache=False).logits.square().mean()
    num_layers = backbone.model.config.num_hidden_layers
    assert num_calls == num_layers
    with ThreadPoolExecutor(1) as others:  # as torch's engine does it for a GPU
        others.submit(loss.backward).result()
    assert num_calls == 2 * num_layers
    assert not torch._C._len_torch_function_stack()
