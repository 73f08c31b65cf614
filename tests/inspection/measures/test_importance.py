"""A planted important token is ranked first, and the changes are changes of the loss."""

import pytest
from families import tiny_backbone
from test_ladder import IDS, LABELS, ROWS, TASK, tuned

from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.errors import PromptError
from ptuning.evaluation.scoring import score_rows
from ptuning.inspection.measures.importance import COLUMNS, importance
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.prompts.encoders import Conditioned
from ptuning.prompts.initializers import from_ids
from ptuning.prompts.soft_prompt import SoftPrompt

PLANTED = 2


@pytest.fixture(scope="module")
def tiny():
    return tiny_backbone(std=0.4)


def planted(backbone):
    """Four virtual tokens of which one differs from the others, and rows with the answers that the model then gives."""
    vocabulary = Vocabulary.of(backbone)
    prompt_PH = vocabulary.rows([270, 270, 300, 270])
    task = Task("{prompt:4}review: {text} sentiment", verbalizer=LABELS)
    coder = backbone.coder(task)
    scores_NC = score_rows(backbone, prompt_PH, coder.encode(ROWS), coder.label_ids).labels_NC
    names = list(LABELS)
    rows = [
        Row({**row.values, "label": names[best]}, row.where)
        for row, best in zip(ROWS, scores_NC.argmax(dim=1).tolist(), strict=True)
    ]
    return SoftPrompt(prompt_PH, task), rows


def test_planted_token_is_the_most_important(tiny):
    prompt, rows = planted(tiny)
    table = importance(prompt, tiny, rows)
    assert all(list(record) == list(COLUMNS) for record in table)
    changes = table.column("mean")
    assert changes.index(max(changes)) == PLANTED
    assert table[PLANTED]["mean_low"] > 0
    assert max(each for p, each in enumerate(changes) if p != PLANTED) < 0.6 * changes[PLANTED]


def test_changes_are_those_of_the_loss(tiny):
    prompt, coder = tuned(tiny), tiny.coder(TASK)
    table = importance(prompt, tiny, ROWS)
    examples = coder.encode(ROWS)

    def loss(prompt_PH):
        return -float(score_rows(tiny, prompt_PH, examples, coder.label_ids).log_probs_N.mean())

    start_PH = from_ids(tiny.vocabulary_VH, IDS)
    others_H = prompt.embeddings_PH[[0, 1, 2, 4]].mean(dim=0)
    for name, row_H in (("mean", others_H), ("init", start_PH[3])):
        changed_PH = prompt.embeddings_PH.clone()
        changed_PH[3] = row_H
        assert table[3][name] == pytest.approx(loss(changed_PH) - loss(prompt.embeddings_PH), abs=1e-5)
        assert table[3][f"{name}_low"] <= table[3][name] <= table[3][f"{name}_high"]


def test_a_token_that_is_its_init_changes_nothing_when_it_is_replaced_by_it(tiny):
    table = importance(tuned(tiny, distance=0.0), tiny, ROWS[:8])
    assert table.column("init") == [0.0] * 5
    assert importance(SoftPrompt(tuned(tiny).embeddings_PH, TASK), tiny, ROWS[:8]).column("init") == [None] * 5


def test_one_virtual_token_alone_has_no_others(tiny):
    task = Task("{prompt:1}review: {text} sentiment", verbalizer=LABELS)
    (record,) = importance(tuned(tiny, task=task, ids=IDS[:1]), tiny, ROWS[:8])
    assert record["mean"] is None
    assert record["random"] is not None


def test_conditioned_prompt_is_refused(tiny):
    encoder = Conditioned(from_ids(tiny.vocabulary_VH, IDS))
    prompt = SoftPrompt(encoder.prompt_PH, TASK, weights=encoder.state_dict())
    with pytest.raises(PromptError, match="importance of a conditioned prompt"):
        importance(prompt, tiny, ROWS)
