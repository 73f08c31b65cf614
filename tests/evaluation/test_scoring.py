"""Rows are scored in batches and come back in their own order, each with the prompt that is its own."""

import math

import pytest
import torch
from families import tiny_backbone

from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.evaluation.scoring import evaluate, score_rows
from ptuning.forward.batch_prompt import KeptPrompts, as_batch_prompt
from ptuning.forward.read_options import ReadOptions

LABELS = {"negative": " negative", "positive": " positive"}
TASK = Task("{prompt:3}review: {text} sentiment", verbalizer=LABELS)
TEXTS = ["a film", "the very dull plot of a very bad film in the capital", "good", "a bright and good plot", "bad film"]
ROWS = [Row({"text": text, "label": list(LABELS)[i % 2]}, f"row {i}") for i, text in enumerate(TEXTS * 2)]


@pytest.fixture(scope="module")
def tiny():
    return tiny_backbone(std=0.4)


@pytest.mark.parametrize("path", ["splice", "auto"])
@pytest.mark.parametrize("num_prompts", [1, len(ROWS)])
def test_scores_come_back_in_the_rows_own_order(tiny, path, num_prompts):
    coder = tiny.coder(TASK)
    examples = coder.encode(ROWS)
    prompts_NPH = torch.randn(num_prompts, 3, tiny.width, generator=torch.Generator().manual_seed(0))
    prompt = prompts_NPH[0] if num_prompts == 1 else prompts_NPH
    scores = score_rows(tiny, prompt, examples, coder.label_ids, ReadOptions(3, path=path))
    for i, example in enumerate(examples):
        own = score_rows(tiny, prompts_NPH[i % num_prompts], [example], coder.label_ids, ReadOptions(path="splice"))
        assert torch.allclose(scores.labels_NC[i], own.labels_NC[0], atol=1e-4)
        assert torch.allclose(scores.log_probs_N[i], own.labels_NC[0, example.label], atol=1e-4)
        assert scores.is_correct_N[i] == own.is_correct_N[0]
    assert scores.labels_NC.std(dim=0).min() > 1e-3  # rows differ


def test_metrics_sum_up_the_rows_scores(tiny):
    coder = tiny.coder(TASK)
    examples, prompt_PH = coder.encode(ROWS), torch.zeros(3, tiny.width)
    scores = score_rows(tiny, prompt_PH, examples, coder.label_ids)
    metrics = evaluate(tiny, prompt_PH, examples, coder.label_ids)
    assert metrics.accuracy == float(scores.is_correct_N.float().mean())
    assert metrics.loss == pytest.approx(-float(scores.log_probs_N.mean()), rel=1e-5)


def test_words_that_all_rows_begin_with_are_run_once_without_a_prompt_too(tiny):
    coder = tiny.coder(TASK.without_prompt())
    examples, nothing_0H = coder.encode(ROWS), tiny.vocabulary_VH[:0]
    run = as_batch_prompt(nothing_0H).with_prefix_run(tiny, examples[0].ids[:3], len(examples))
    assert run.part([0]).prefix_lengths == (3,)
    assert not isinstance(as_batch_prompt(nothing_0H).with_prefix_run(tiny, (), len(examples)), KeptPrompts)
    found, expected = (
        score_rows(tiny, nothing_0H, examples, coder.label_ids, ReadOptions(path=path)) for path in ("auto", "splice")
    )
    assert torch.allclose(found.labels_NC, expected.labels_NC, atol=1e-4)


def test_written_answers_have_no_labels(tiny):
    task = Task("{prompt:3}review: {text}", answer=" {label}")
    scores = score_rows(tiny, torch.zeros(3, tiny.width), tiny.coder(task).encode(ROWS), [])
    assert scores.labels_NC is None
    assert len(scores.log_probs_N) == len(ROWS)


@pytest.mark.parametrize("verbalizer", [TASK.verbalizer, None])
def test_no_rows_have_no_scores(tiny, verbalizer):
    task = TASK if verbalizer else Task("{prompt:3}review: {text}", answer=" {label}")
    label_ids = tiny.coder(task).label_ids
    scores = score_rows(tiny, torch.zeros(3, tiny.width), [], label_ids)
    assert (scores.log_probs_N.shape, scores.is_correct_N.shape) == ((0,), (0,))
    assert (scores.labels_NC is None) == (verbalizer is None)
    metrics = evaluate(tiny, torch.zeros(3, tiny.width), [], label_ids)
    assert set(metrics.sums) == {0.0}
    assert len(metrics.confusion) == len(label_ids)
    assert math.isnan(metrics.accuracy)
    assert metrics.interval == (0.0, 1.0)
