"""Answers that are read side by side behind a row score as each by itself."""

import dataclasses

import pytest
import torch
from families import ATTENTION, NUM_POSITIONS, tiny_backbone

from ptuning.data.examples import Example, with_answer
from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.errors import DataError
from ptuning.forward import candidates as choices
from ptuning.forward import objective
from ptuning.forward import paths as forward
from ptuning.forward import shared_prefix as shared_prefix_module
from ptuning.forward.batch_prompt import KeptPrompts
from ptuning.forward.prefix_cache import Prefix
from ptuning.forward.shared_prefix import can_pack
from ptuning.model.causal import CausalBackbone
from ptuning.model.kernels.attention import FILLED_TO
from ptuning.prompts import initializers

TEXTS = ["the film was dull and very bad", "a", "bright", "the plot was good"]
ANSWERS = [[[40, 41, 42], [50], [60, 61]], [[7], [9, 8, 7, 6]], [[40, 41, 42], [50], [60, 61]], [[12, 13]]]


def asked(
    family: str, num_virtual: tuple[int, int] = (5, 2), window: int = 200
) -> tuple[CausalBackbone, KeptPrompts, list[Example]]:
    """Rows with two prompts of unequal lengths, and their templates."""
    wide = {"sliding_window": window} if "sliding_window" in tiny_backbone(family).model.config.to_dict() else {}
    backbone = tiny_backbone(family, **wide)
    assert isinstance(backbone, CausalBackbone)
    coders = [backbone.coder(Task(f"{{prompt:{num}}}the {{text}} is")) for num in num_virtual]
    prompts = [initializers.from_vocabulary(backbone.vocabulary_VH, num, seed=num) for num in num_virtual]
    prefixes = [Prefix.of(backbone, prompt, coder.prefix_ids) for prompt, coder in zip(prompts, coders, strict=True)]
    choice = (0, 1, 1, 0)
    examples = [
        coders[k].encode_questions([Row({"text": text}, "row")])[0] for k, text in zip(choice, TEXTS, strict=True)
    ]
    return backbone, KeptPrompts(prompts, prefixes, choice), examples


@pytest.mark.parametrize("family", sorted(set(ATTENTION) - {"bloom", "mpt"}))
@pytest.mark.parametrize(("at_once", "num_empty"), [(8, 0), (512, 0), (512, 5)])
def test_answers_score_as_each_by_itself(
    family: str, at_once: int, num_empty: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "_TOKENS_AT_ONCE", at_once)
    monkeypatch.setattr(shared_prefix_module, "num_filling", lambda *_: num_empty)
    backbone, prompts, examples = asked(family)
    with torch.no_grad():
        expected = objective.whole_label_log_probs(backbone, prompts, examples, ANSWERS, "splice")
    torch.testing.assert_close(
        choices.candidate_log_probs(backbone, prompts, examples, ANSWERS), expected, rtol=0, atol=1e-4
    )


def test_labels_of_several_tokens_are_scored_behind_one_run_of_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, prompts, examples = asked("llama")
    assert backbone.supports_packing
    objective.label_log_probs(backbone, prompts, examples, ANSWERS)  # what the model can do is found out by running it
    num_tokens, run = [], type(backbone).run
    monkeypatch.setattr(
        type(backbone), "run", lambda self, **i: num_tokens.append(i["inputs_embeds"].shape[1]) or run(self, **i)
    )
    monkeypatch.setattr(objective, "whole_label_log_probs", pytest.fail)
    objective.label_log_probs(backbone, prompts, examples, ANSWERS)
    assert len(num_tokens) == 2
    assert num_tokens[1] == 1 + 3  # a row's last token and its answers' but for the last of each


def test_models_that_cannot_read_answers_side_by_side_read_them_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, prompts, examples = asked("bloom")
    monkeypatch.setattr(objective, "candidate_log_probs", pytest.fail)
    with torch.no_grad():
        scores_BC = objective.label_log_probs(backbone, prompts, examples, ANSWERS)
        expected = objective.whole_label_log_probs(backbone, prompts, examples, ANSWERS, "splice")
    torch.testing.assert_close(scores_BC, expected, rtol=0, atol=1e-4)


def test_no_window_forgets_what_is_before_keys_that_nothing_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prefix_module, "num_filling", lambda *_: FILLED_TO - 1)
    packed = []
    for window in range(12, 70, 2):
        backbone, prompts, examples = asked("mistral", (2, 1), window)
        short = sorted(range(len(examples)), key=lambda b, of=examples: len(of[b]))[:2]
        prompts = dataclasses.replace(prompts, choice=tuple(prompts.choice[b] for b in short))
        batch = backbone.collate([with_answer(examples[b], [5]) for b in short])
        with torch.no_grad():
            expected_NV = forward.label_logits(backbone, prompts, batch, "splice")
            found_NV = forward.label_logits(backbone, prompts, batch)
        torch.testing.assert_close(found_NV, expected_NV, rtol=0, atol=1e-4)
        packed.append(can_pack(backbone, prompts, batch))
    assert packed == sorted(packed)
    assert {*packed} == {False, True}


def test_answers_that_would_leave_a_window_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, prompts, examples = asked("mistral")
    longest = max(map(len, examples))
    monkeypatch.setattr(
        backbone, "window", 2 * longest + max(prompts.prefix_lengths) + FILLED_TO
    )  # the rows alone would fit
    assert can_pack(backbone, prompts, backbone.collate(examples))
    monkeypatch.setattr(objective, "candidate_log_probs", pytest.fail)
    with torch.no_grad():
        objective.label_log_probs(backbone, prompts, examples, ANSWERS)


def test_answers_beyond_the_models_positions_say_so_before_they_are_run() -> None:
    backbone, prompts, examples = asked("gpt2")
    longest = max(map(len, examples))
    answers = [[[7] * (NUM_POSITIONS - longest + 1)]] * len(examples)
    with pytest.raises(DataError, match=rf"a row of {NUM_POSITIONS + 1} tokens.* at most {NUM_POSITIONS}"):
        objective.label_log_probs(backbone, prompts, examples, answers)
