"""Every rung is measured on the same rows, with what its name says in the prompt's place."""

import pytest
import torch
from families import FAMILIES, tiny_backbone

from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.errors import DataError, PromptError
from ptuning.evaluation.bootstrap import Scores
from ptuning.evaluation.scoring import evaluate, score_rows
from ptuning.inspection.measures.ladder import (
    COLUMNS,
    EMBEDDED,
    HUMAN,
    INIT_TEXT,
    NONE,
    RANDOM,
    RANDOM_TEXT,
    SOFT,
    TEXT,
    UNTRAINED,
    ladder,
    slot_texts,
)
from ptuning.inspection.measures.nearest_tokens import decode
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.prompts.encoders import Conditioned
from ptuning.prompts.initializers import from_ids
from ptuning.prompts.soft_prompt import SoftPrompt

LABELS = {"negative": " negative", "positive": " positive"}
TASK = Task("{prompt:3}review: {text}{prompt:2} sentiment", verbalizer=LABELS)
WORDS = ["good", "bad", "dull", "bright", "very good", "a plot", "the film was dull"]
ROWS = [Row({"text": f"{WORDS[i % len(WORDS)]} film {i}", "label": list(LABELS)[i % 2]}, f"row {i}") for i in range(24)]
IDS = [262, 270, 281, 290, 300]


def tuned(backbone, distance=0.3, task=TASK, ids=IDS):
    start_PH = from_ids(backbone.vocabulary_VH, ids)
    noise_PH = torch.randn(start_PH.shape, generator=torch.Generator().manual_seed(1))
    return SoftPrompt(start_PH + distance * noise_PH, task, init={"token_ids": ids})


def decoded(prompt, backbone):
    return decode(prompt.embeddings_PH, Vocabulary.of(backbone), k=1, num_null=3).column("id")


@pytest.fixture(scope="module")
def tiny():
    return tiny_backbone(std=0.4)


@pytest.fixture(scope="module")
def measured(tiny):
    prompt = tuned(tiny)
    return ladder(prompt, tiny, ROWS, decoded(prompt, tiny), human="a good film", num_random=6)


def test_rungs_stand_in_their_order(measured):
    order = [NONE, RANDOM, RANDOM_TEXT, UNTRAINED, INIT_TEXT, HUMAN, EMBEDDED, TEXT, SOFT]
    assert measured.table.column("rung") == order
    assert all(list(record) == list(COLUMNS) for record in measured.table)
    assert measured.table.column("prompts") == [1, 6, 6, 1, 1, 1, 1, 1, 1]
    assert measured.table.column("rows") == [24, 48, 48, 24, 24, 24, 24, 24, 24]


def test_rungs_score_what_evaluation_scores(measured, tiny):
    prompt = tuned(tiny)
    vocabulary = Vocabulary.of(tiny)
    nothing_0H = tiny.vocabulary_VH[:0]
    ids = decoded(prompt, tiny)
    texts = slot_texts(TASK, tiny.tokenizer, ids)
    assert measured.text == " | ".join(texts)
    expected = {
        NONE: (TASK.without_prompt(), nothing_0H),
        UNTRAINED: (TASK, vocabulary.rows(IDS)),
        INIT_TEXT: (TASK.with_texts(slot_texts(TASK, tiny.tokenizer, IDS)), nothing_0H),
        HUMAN: (TASK.with_texts(["a good film", ""]), nothing_0H),
        EMBEDDED: (TASK, vocabulary.rows(ids)),
        TEXT: (Task(f"{texts[0]}review: {{text}}{texts[1]} sentiment", verbalizer=LABELS), nothing_0H),
        SOFT: (TASK, prompt.embeddings_PH),
    }
    for name, (task, prompt_PH) in expected.items():
        coder = tiny.coder(task)
        metrics = evaluate(tiny, prompt_PH, coder.encode(ROWS), coder.label_ids)
        (record,) = [each for each in measured.table if each["rung"] == name]
        assert record["accuracy"] == pytest.approx(metrics.accuracy), name
        assert record["loss"] == pytest.approx(metrics.loss, rel=1e-4), name
        assert record["loss_low"] < record["loss"] < record["loss_high"]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_of_real_tokens_loses_nothing_in_decoding(family):
    backbone = tiny_backbone(family)
    task = Task("{prompt:5}review: {text} sentiment", verbalizer=LABELS)
    prompt = tuned(backbone, distance=0.0, task=task)
    found = ladder(prompt, backbone, ROWS[:6], decoded(prompt, backbone), num_random=2)
    found.scores._scores[EMBEDDED] = Scores.one(  # anew: a rung that was measured already is not measured twice
        score_rows(
            backbone, Vocabulary.of(backbone).rows(decoded(prompt, backbone)), backbone.coder(task).encode(ROWS[:6]),
            backbone.coder(task).label_ids,
        )
    )  # fmt: skip
    for measure in ("accuracy", "loss"):
        gap = found.scores.gain(SOFT, EMBEDDED, measure)
        assert (gap.value, gap.low, gap.high) == (0.0, 0.0, 0.0)


def test_every_row_meets_two_random_prompts_and_every_prompt_as_many_rows(tiny):
    found = ladder(tuned(tiny), tiny, ROWS, IDS, num_random=6)
    scores = found.scores._scores[RANDOM]
    assert scores.is_measured_NK.sum(dim=1).tolist() == [2] * 24
    assert scores.is_measured_NK.sum(dim=0).tolist() == [8] * 6


def test_fewer_rows_than_random_prompts(tiny):
    found = ladder(tuned(tiny), tiny, ROWS[:3], IDS, num_random=20)
    (record,) = [each for each in found.table if each["rung"] == RANDOM]
    assert record["rows"] == 6


def test_behaviour_of_the_text_is_told_beside_random_text(tiny):
    """Text stands behind the begin-of-text token and virtual tokens do not; so random text is measured too."""
    task = Task("{prompt:5}review: {text} sentiment", verbalizer=LABELS)
    ids = [262, 263, 264, 265, 266]
    prompt = tuned(tiny, distance=0.0, task=task, ids=ids)
    found = ladder(prompt, tiny, ROWS, decoded(prompt, tiny), num_random=4)
    assert RANDOM_TEXT in found.scores.names
    over_tokens, over_text = (found.scores.divergence_kept(TEXT, SOFT, base) for base in (RANDOM, RANDOM_TEXT))
    assert over_tokens.low < over_text.low
    assert found.behaviour == over_tokens.as_dict()  # the lower one
    assert found.scores.divergence_kept(EMBEDDED, SOFT, RANDOM_TEXT).value == pytest.approx(1.0, abs=1e-5)


def test_random_text_is_measured_where_a_beginning_moves_text_alone(tiny):
    t5 = tiny_backbone("t5")  # has no begin-of-text token
    task = Task("{prompt:5}review: {text} sentiment", verbalizer=LABELS)
    prompt = tuned(t5, task=task)
    assert RANDOM_TEXT not in ladder(prompt, t5, ROWS[:6], decoded(prompt, t5), num_random=2).scores.names
    prompt = tuned(tiny, task=task)
    found = ladder(prompt, tiny, ROWS[:6], decoded(prompt, tiny), num_random=3)
    assert (found.scores.num_rows(RANDOM_TEXT), found.scores.num_prompts(RANDOM_TEXT)) == (12, 3)


def test_answers_that_are_written_are_measured_too(tiny):
    task = Task("{prompt:5}review: {text}", answer="{label}")
    prompt = tuned(tiny, task=task)
    found = ladder(prompt, tiny, ROWS[:8], decoded(prompt, tiny), num_random=2)
    assert found.behaviour is None
    assert not found.scores.has_labels
    assert len(found.table) == 8


def test_where_it_began_may_not_be_known(tiny):
    prompt = SoftPrompt(tuned(tiny).embeddings_PH, TASK)
    found = ladder(prompt, tiny, ROWS[:8], decoded(prompt, tiny), num_random=2)
    assert found.table.column("rung") == [NONE, RANDOM, RANDOM_TEXT, EMBEDDED, TEXT, SOFT]


def test_conditioned_prompt_is_decoded_row_by_row(tiny):
    torch.manual_seed(0)
    encoder = Conditioned(from_ids(tiny.vocabulary_VH, IDS))
    torch.nn.init.normal_(encoder.output[-1].weight, std=0.5)
    task = Task("{prompt:5}review: {text} sentiment", verbalizer=LABELS)
    prompt = SoftPrompt(encoder.prompt_PH, task, weights=encoder.state_dict(), init={"token_ids": IDS})
    found = ladder(prompt, tiny, ROWS[:8], IDS, num_random=2)
    assert found.table.column("rung") == [NONE, RANDOM, UNTRAINED, INIT_TEXT, EMBEDDED, SOFT]
    assert found.text is None
    assert found.share_init is not None
    examples = tiny.coder(task).encode(ROWS[:8])
    expected = 0.0
    for example in examples:
        batch = tiny.collate([example])
        made_PH = encoder(tiny.embed(batch.ids_BT.clamp(min=0)), batch.text_BT)[0].detach()
        ids = decode(made_PH, Vocabulary.of(tiny), k=1, num_null=3).column("id")
        own_PH = Vocabulary.of(tiny).rows(ids)
        expected -= float(score_rows(tiny, own_PH, [example], tiny.coder(task).label_ids).log_probs_N[0])
    (record,) = [each for each in found.table if each["rung"] == EMBEDDED]
    assert record["loss"] == pytest.approx(expected / 8, rel=1e-4)


def test_what_cannot_be_measured_is_refused(tiny):
    with pytest.raises(PromptError, match="a prompt without a task; expected one with a template"):
        ladder(SoftPrompt(torch.randn(5, tiny.width)), tiny, ROWS, IDS)
    with pytest.raises(PromptError, match="num_random=0; expected a random prompt or more"):
        ladder(tuned(tiny), tiny, ROWS, IDS, num_random=0)
    with pytest.raises(DataError, match="1 rows to measure on; expected two or more"):
        ladder(tuned(tiny), tiny, ROWS[:1], IDS)
