"""A planted important token is ranked first, and attention is what the model's own layers give."""

import pytest
import torch
from families import tiny_backbone
from test_ladder import IDS, LABELS, ROWS, TASK, tuned

from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.errors import PromptError
from ptuning.evaluation.scoring import score_rows
from ptuning.forward.placement import place
from ptuning.inspection.measures.importance import COLUMNS, attention, importance
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.prompts.encoders import Conditioned
from ptuning.prompts.initializers import from_ids
from ptuning.prompts.soft_prompt import SoftPrompt

PLANTED = 2


@pytest.fixture(scope="module")
def tiny():
    return tiny_backbone(std=0.4)


def planted(backbone):
    """Four virtual tokens that are the same but for one, and rows whose answers are those the model then gives."""
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


def test_attention_is_that_of_the_models_own_layers():
    backbone = tiny_backbone()
    prompt, examples = tuned(backbone), backbone.coder(TASK).encode(ROWS[:3])
    found_P = attention(prompt.embeddings_PH, backbone, examples)
    backbone.model.set_attn_implementation("eager")
    total_P = torch.zeros(5)
    for example in examples:
        batch = backbone.collate([example])
        run = backbone.model(
            inputs_embeds=place(backbone, prompt.embeddings_PH, batch.ids_BT), output_attentions=True, use_cache=False
        )
        scored = int(batch.scored_BT[0].nonzero()[0])
        share_T = torch.stack(run.attentions).mean(dim=(0, 2))[0, scored]
        total_P += torch.stack([share_T[int((batch.ids_BT[0] == -1 - p).nonzero()[0])] for p in range(5)]).detach()
    assert torch.allclose(found_P, total_P / 3, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "qwen3", "mistral"])
def test_attention_of_a_row_is_shared_out(family):
    backbone = tiny_backbone(family)
    found_P = attention(tuned(backbone).embeddings_PH, backbone, backbone.coder(TASK).encode(ROWS[:2]))
    assert found_P is not None
    assert (found_P >= 0).all()
    assert float(found_P.sum()) < 1


def test_attention_that_cannot_be_seen_is_not_told():
    backbone = tiny_backbone("mamba")
    assert attention(tuned(backbone).embeddings_PH, backbone, backbone.coder(TASK).encode(ROWS[:2])) is None


def test_conditioned_prompt_is_refused(tiny):
    encoder = Conditioned(from_ids(tiny.vocabulary_VH, IDS))
    prompt = SoftPrompt(encoder.prompt_PH, TASK, weights=encoder.state_dict())
    with pytest.raises(PromptError, match="importance of a conditioned prompt"):
        importance(prompt, tiny, ROWS)
