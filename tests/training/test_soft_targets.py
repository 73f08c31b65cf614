"""What a teacher says at rows' answers, and the divergence from it."""

import pytest
import torch
from torch.nn import functional

from ptuning.data import Task, as_row
from ptuning.forward import label_logits
from ptuning.model import Backbone
from ptuning.training import SoftTargets, backward_in_parts

VOCABULARY, LENGTHS = 40, (2, 1, 3)


@pytest.fixture
def logits_NV() -> torch.Tensor:
    return 3 * torch.randn(sum(LENGTHS), VOCABULARY, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def others_NV() -> torch.Tensor:
    return torch.randn(sum(LENGTHS), VOCABULARY, generator=torch.Generator().manual_seed(1)).requires_grad_()


def test_with_all_tokens_kept_it_is_the_whole_divergence_gradient_included(
    logits_NV: torch.Tensor, others_NV: torch.Tensor
) -> None:
    found_N = SoftTargets.of_logits(logits_NV, LENGTHS, VOCABULARY).divergences(others_NV)
    whole_N = functional.kl_div(
        others_NV.log_softmax(1), logits_NV.log_softmax(1), log_target=True, reduction="none"
    ).sum(1)
    torch.testing.assert_close(found_N, whole_N)
    gradients = [torch.autograd.grad(each.sum(), others_NV)[0] for each in (found_N, whole_N)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("num_kept", [1, 3, 20])
def test_tokens_that_were_not_kept_count_as_one(
    num_kept: int, logits_NV: torch.Tensor, others_NV: torch.Tensor
) -> None:
    targets = SoftTargets.of_logits(logits_NV, LENGTHS, num_kept)
    expected, given = logits_NV.softmax(1), others_NV.softmax(1)
    top_NK = expected.topk(num_kept, dim=1).indices

    def events(probabilities_NV: torch.Tensor) -> torch.Tensor:
        kept_NK = probabilities_NV.gather(1, top_NK)
        return torch.cat([kept_NK, 1 - kept_NK.sum(1, keepdim=True)], dim=1)

    one, other = events(expected), events(given)
    torch.testing.assert_close(targets.divergences(others_NV), (one * (one / other).log()).sum(1), rtol=1e-3, atol=1e-4)
    whole_N = SoftTargets.of_logits(logits_NV, LENGTHS, VOCABULARY).divergences(others_NV)
    assert (targets.divergences(others_NV) <= whole_N + 1e-5).all()


def test_rows_are_taken_and_joined_in_the_order_in_which_they_are_named(logits_NV: torch.Tensor) -> None:
    targets = SoftTargets.of_logits(logits_NV, LENGTHS, 5)
    turned = targets.of_rows([2, 0])
    assert turned.lengths == (3, 2)
    assert torch.equal(turned.ids_NK, targets.ids_NK[[3, 4, 5, 0, 1]])
    again = SoftTargets.joined([turned, targets.of_rows([1])]).of_rows([1, 2, 0])
    assert again.sha256 == targets.sha256
    assert turned.sha256 != targets.sha256


def test_a_teacher_that_went_on_is_made_to_end(logits_NV: torch.Tensor, others_NV: torch.Tensor) -> None:
    end = 7
    ended = SoftTargets.of_logits(logits_NV, LENGTHS, 5).ending_with(end)
    found_N, log_probs_NV = ended.divergences(others_NV), others_NV.log_softmax(1)
    last = [1, 2, 5]
    torch.testing.assert_close(found_N[last], -log_probs_NV[last, end])
    before = SoftTargets.of_logits(logits_NV, LENGTHS, 5).divergences(others_NV)
    torch.testing.assert_close(found_N[[0, 3, 4]], before[[0, 3, 4]])
    found_N.sum().backward()
    assert others_NV.grad is not None
    assert others_NV.grad.isfinite().all()


@pytest.mark.parametrize("most", [None, 60])
def test_another_loss_has_the_gradient_of_its_sum_over_all_rows(backbone: Backbone, most: int | None) -> None:
    task = Task("{prompt:3}{text} is", verbalizer={"a": " good", "b": " bad and long"})
    rows = [{"text": "one two three " * n, "label": "ab"[n % 2]} for n in range(1, 5)]
    examples = backbone.coder(task).encode([as_row(each, "row", task.columns) for each in rows])
    teacher_NV = label_logits(backbone, torch.randn(3, backbone.width), backbone.collate(examples))
    targets = SoftTargets.of_logits(teacher_NV.detach(), [len(each.answer_ids) for each in examples], 8)
    prompt_PH = torch.randn(3, backbone.width, generator=torch.Generator().manual_seed(2), requires_grad=True)
    logits_NV = label_logits(backbone, prompt_PH, backbone.collate(examples), "splice")
    expected = targets.divergences(logits_NV).sum()
    (gradient_PH,) = torch.autograd.grad(expected * 0.5, prompt_PH)

    def loss_of(prompt, batch, places):  # type: ignore[no-untyped-def]
        return targets.of_rows(places).divergences(label_logits(backbone, prompt, batch)).sum()

    loss = backward_in_parts(backbone, prompt_PH, examples, 0.5, max_batch_tokens=most, loss_of=loss_of)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(prompt_PH.grad, gradient_PH)
