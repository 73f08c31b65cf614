"""What is trained is what is scored; the numbers are those of the plain definitions."""

import dataclasses

import pytest
import torch
from conftest import review_rows

from ptuning.data.batches import collate
from ptuning.data.coder import Coder
from ptuning.data.examples import Example
from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.evaluation.scoring import WITH, WITHOUT, evaluate, evaluate_rows
from ptuning.forward import objective
from ptuning.forward.prefix_cache import Prefix
from ptuning.forward.read_options import ReadOptions
from ptuning.prompts.encoders import Embedding
from ptuning.prompts.initializers import from_vocabulary

ONE_TOKEN = {"negative": " negative", "positive": " positive"}
SEVERAL_TOKENS = {"negative": " very bad", "positive": " good", "neither": " in the film!"}


@pytest.fixture
def prompt_PH(backbone):
    return from_vocabulary(backbone.vocabulary_VH, 4, seed=1)


def classification(backbone, verbalizer, count=6):
    """Examples of reviews of unequal lengths, and their labels' ids."""
    coder = Coder(Task("{prompt:4}review: {text}\nsentiment:", verbalizer=verbalizer), backbone.tokenizer)
    return coder.encode([Row(values, "row") for values in review_rows(count)]), coder.label_ids


def generation(backbone, count=6):
    """Examples whose answers are text of several tokens."""
    coder = Coder(Task("{prompt:4}{text} is", "{label}!"), backbone.tokenizer)
    return coder.encode([Row(values, "row") for values in review_rows(count)])


def token_scores(backbone, prompt_PH, example, answer_ids):
    """Log-probability of each token of an answer, and the most likely token at its place, from the plain model."""
    num_virtual = sum(token < 0 for token in example.ids)
    text = torch.tensor([*example.ids[num_virtual:], *answer_ids])
    whole_1TH = torch.cat([prompt_PH[:num_virtual], backbone.embed(text)])[None]
    with torch.no_grad():
        log_probs_TV = backbone.model(inputs_embeds=whole_1TH).logits[0].log_softmax(dim=1)
    places = range(len(example.ids) - 1, len(example.ids) + len(answer_ids) - 1)
    scores = [float(log_probs_TV[place, token]) for place, token in zip(places, answer_ids, strict=True)]
    return scores, [int(log_probs_TV[place].argmax()) for place in places]


def continuation(backbone, prompt_PH, example, num_tokens):
    """What greedy generation writes, by the plain model alone."""
    written = []
    for _ in range(num_tokens):
        written.append(token_scores(backbone, prompt_PH, example, [*written, 0])[1][-1])
    return written


def test_loss_is_the_mean_cross_entropy_of_the_answers_tokens(backbone, prompt_PH):
    examples = generation(backbone)
    assert len({len(example) for example in examples}) > 1
    scores = [s for example in examples for s in token_scores(backbone, prompt_PH, example, example.answer_ids)[0]]
    batch = collate(examples, backbone.pad_id)
    assert float(objective.loss(backbone, prompt_PH, batch)) == pytest.approx(-sum(scores) / len(scores), rel=1e-5)
    assert float(objective.loss_sum(backbone, prompt_PH, batch)) == pytest.approx(-sum(scores), rel=1e-5)


def test_loss_of_batches_together_is_the_loss_of_one_batch(backbone, prompt_PH):
    examples = generation(backbone)
    parts = [collate(examples[:1], backbone.pad_id), collate(examples[1:], backbone.pad_id)]
    whole = objective.loss_sum(backbone, prompt_PH, collate(examples, backbone.pad_id))
    assert float(sum(objective.loss_sum(backbone, prompt_PH, part) for part in parts)) == pytest.approx(
        float(whole), rel=1e-5
    )


def test_gradient_reaches_the_prompt_and_nothing_else(backbone, prompt_PH):
    learned_PH = prompt_PH.requires_grad_()
    objective.loss(backbone, learned_PH, collate(generation(backbone), backbone.pad_id)).backward()
    assert (learned_PH.grad.norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


@pytest.mark.parametrize("verbalizer", [ONE_TOKEN, SEVERAL_TOKENS])
def test_label_scores_are_the_summed_log_probabilities_of_the_labels_texts(backbone, prompt_PH, verbalizer):
    examples, label_ids = classification(backbone, verbalizer)
    expected = [[sum(token_scores(backbone, prompt_PH, example, ids)[0]) for ids in label_ids] for example in examples]
    with torch.no_grad():
        scores_BC = objective.label_log_probs(backbone, prompt_PH, examples, [label_ids] * len(examples))
    assert scores_BC.shape == (len(examples), len(verbalizer))
    assert (scores_BC - torch.tensor(expected)).abs().max() < 1e-4


def test_labels_of_one_token_are_scored_in_one_forward_as_they_would_be_one_by_one(any_backbone, monkeypatch):
    prompt_PH = from_vocabulary(any_backbone.vocabulary_VH, 4)
    examples, label_ids = classification(any_backbone, ONE_TOKEN)
    assert [len(ids) for ids in label_ids] == [1, 1]
    with torch.no_grad():
        reference_BC = objective.whole_label_log_probs(any_backbone, prompt_PH, examples, [label_ids] * len(examples))
        monkeypatch.setattr(objective, "whole_label_log_probs", pytest.fail)
        scores_BC = objective.label_log_probs(any_backbone, prompt_PH, examples, [label_ids] * len(examples))
    assert (scores_BC - reference_BC).abs().max() < 1e-4
    assert reference_BC.std() > 0.1


def test_label_scores_do_not_look_at_the_rows_own_answers(backbone, prompt_PH):
    examples, label_ids = classification(backbone, ONE_TOKEN)
    unanswered = [dataclasses.replace(example, answer_ids=[]) for example in examples]
    with torch.no_grad():
        scores_BC = objective.label_log_probs(backbone, prompt_PH, examples, [label_ids] * len(examples))
        assert torch.equal(
            objective.label_log_probs(backbone, prompt_PH, unanswered, [label_ids] * len(examples)), scores_BC
        )


def test_answer_scores_sum_over_the_answers_tokens(backbone, prompt_PH):
    examples = generation(backbone)
    expected = [sum(token_scores(backbone, prompt_PH, example, example.answer_ids)[0]) for example in examples]
    with torch.no_grad():
        scores_B, _ = objective.answer_log_probs(backbone, prompt_PH, collate(examples, backbone.pad_id))
    assert scores_B.tolist() == pytest.approx(expected, abs=1e-4)


def test_answer_is_greedy_only_if_every_token_is_the_most_likely(backbone, prompt_PH):
    question = Example([-1, -2, -3, -4, 0, 300, 310], [])
    best = continuation(backbone, prompt_PH, question, 3)
    wrong_last, wrong_first = [*best[:2], (best[2] + 1) % 300], [(best[0] + 1) % 300, *best[1:]]
    examples = [Example(question.ids, ids) for ids in (best, wrong_last, wrong_first, best[:1])]
    with torch.no_grad():
        _, is_greedy_B = objective.answer_log_probs(backbone, prompt_PH, collate(examples, backbone.pad_id))
    assert is_greedy_B.tolist() == [True, False, False, True]


@pytest.mark.parametrize("verbalizer", [ONE_TOKEN, SEVERAL_TOKENS])
def test_position_that_is_scored_is_the_one_that_is_trained(any_backbone, verbalizer):
    examples, label_ids = classification(any_backbone, verbalizer, count=1)
    encoder = Embedding(from_vocabulary(any_backbone.vocabulary_VH, 4))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.2)
    batch = collate(examples, any_backbone.pad_id)

    def score():
        with torch.no_grad():
            return float(
                objective.label_log_probs(any_backbone, encoder(), examples, [label_ids] * len(examples))[
                    0, examples[0].label
                ]
            )

    before = score()
    assert objective.loss_sum(any_backbone, encoder(), batch).item() == pytest.approx(-before, abs=1e-4)
    for _ in range(25):
        optimizer.zero_grad()
        objective.loss(any_backbone, encoder(), batch).backward()
        optimizer.step()
    assert score() > before + 1.5


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("verbalizer", [ONE_TOKEN, SEVERAL_TOKENS])
def test_evaluation_of_labels_equals_row_by_row(backbone, prompt_PH, verbalizer, batch_size):
    examples, label_ids = classification(backbone, verbalizer, count=10)
    scores = [[sum(token_scores(backbone, prompt_PH, each, ids)[0]) for ids in label_ids] for each in examples]
    labels = [example.label for example in examples]
    metrics = evaluate(backbone, prompt_PH, examples, label_ids, ReadOptions(batch_size))
    num_correct = sum(row.index(max(row)) == label for row, label in zip(scores, labels, strict=True))
    assert 0 < num_correct < 10
    assert (metrics.num_rows, metrics.num_correct) == (10, num_correct)
    assert metrics.num_label_tokens == sum(len(label_ids[label]) for label in labels)
    assert metrics.loss_sum == pytest.approx(
        -sum(row[label] for row, label in zip(scores, labels, strict=True)), rel=1e-5
    )


@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_of_generated_answers_equals_row_by_row(backbone, prompt_PH, batch_size):
    examples = generation(backbone, count=5)
    examples[1:3] = [
        dataclasses.replace(each, answer_ids=continuation(backbone, prompt_PH, each, 2), was_cut=True)
        for each in examples[1:3]
    ]
    metrics = evaluate(backbone, prompt_PH, examples, [], ReadOptions(batch_size))
    scores = [s for example in examples for s in token_scores(backbone, prompt_PH, example, example.answer_ids)[0]]
    assert (metrics.num_rows, metrics.num_correct, metrics.num_cut) == (5, 2, 2)
    assert metrics.num_label_tokens == len(scores)
    assert metrics.loss_sum == pytest.approx(-sum(scores), rel=1e-5)


def test_rows_are_measured_with_the_prompt_and_without(backbone, prompt_PH):
    rows = [Row(values, "row") for values in review_rows(8)]
    task = Task("{prompt:4}review: {text}\nsentiment:", verbalizer=ONE_TOKEN)
    results = evaluate_rows(backbone, prompt_PH, task, rows, True, ReadOptions(3))
    assert list(results) == [WITHOUT, WITH]
    for name, template in ((WITHOUT, "review: {text}\nsentiment:"), (WITH, task.template)):
        coder = Coder(dataclasses.replace(task, template=template), backbone.tokenizer)
        examples = coder.encode(rows)
        expected = evaluate(backbone, prompt_PH, examples, coder.label_ids)
        assert results[name].metrics.loss == pytest.approx(expected.loss, rel=1e-5)
    assert results[WITH].metrics.loss != pytest.approx(results[WITHOUT].metrics.loss, rel=1e-2)
    assert list(evaluate_rows(backbone, prompt_PH, task, rows, False, ReadOptions(3))) == [WITH]


def test_template_that_is_nothing_without_its_prompt_has_no_baseline(backbone, prompt_PH, monkeypatch, caplog):
    rows = [Row({"text": text, "label": "positive"}, "row") for text in ("", "a")]
    monkeypatch.setattr("ptuning.data.coder.frame_ids", lambda tokenizer: ([], []))
    task = Task("{prompt:4}{text}", verbalizer=ONE_TOKEN)
    assert list(evaluate_rows(backbone, prompt_PH, task, rows, True, ReadOptions(2))) == [WITH]
    assert "no baseline: without the prompt, some rows have no tokens before the answer" in caplog.text


def test_what_rows_begin_with_is_run_once_in_an_evaluation(backbone, prompt_PH, monkeypatch):
    examples, label_ids = classification(backbone, ONE_TOKEN)
    lengths, run = [], Prefix.of.__func__
    monkeypatch.setattr(Prefix, "of", classmethod(lambda cls, *each: lengths.append(len(each[2])) or run(cls, *each)))
    evaluate(backbone, prompt_PH, examples, label_ids, ReadOptions(2))
    assert len(lengths) == 1
