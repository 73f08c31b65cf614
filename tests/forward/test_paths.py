"""The fast path equals the reference, gradients included; no row's score depends on its neighbours or its padding."""

import pytest
import torch
from conftest import ASSETS
from families import tiny_backbone
from hypothesis import given, settings
from hypothesis import strategies as st

from ptuning.data.batches import collate
from ptuning.data.coder import Coder
from ptuning.data.examples import Example
from ptuning.data.readers import Row, read_rows
from ptuning.data.task import Task, Verbalizer
from ptuning.errors import ModelError
from ptuning.forward import line_pass
from ptuning.forward import shared_prefix as shared_prefix_module
from ptuning.forward.batch_prompt import KeptPrompts
from ptuning.forward.objective import label_log_probs
from ptuning.forward.paths import label_logits
from ptuning.forward.prefix_cache import Prefix
from ptuning.forward.shared_prefix import can_share
from ptuning.forward.splice import splice
from ptuning.model.kernels import attention
from ptuning.prompts import initializers
from ptuning.prompts.encoders import Residual

REVIEWS = ASSETS / "movie_reviews" / "validation.csv"
REVIEW_TASK = Task(
    "{prompt:20}Review: {text}\nSentiment:", verbalizer={"negative": " negative", "positive": " positive"}
)
TEXTS = ["the film", "a very dull plot and very bad film was the capital of the film", "bright", "the film was good"]


def example(num_virtual, num_text, num_answer, seed):
    """A row of random ids: leading virtual tokens, text, answer."""
    drawn = torch.randint(3, 300, (num_text + num_answer,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Example([*range(-1, -num_virtual - 1, -1), *drawn[:num_text]], drawn[num_text:])


def templated(backbone, template, texts=TEXTS):
    """Rows of a template whose answers are of several tokens and unequal lengths."""
    rows = [
        Row({"text": text, "label": word}, "row") for text, word in zip(texts, (" good", "x", "", "tin"), strict=True)
    ]
    return Coder(Task(template), backbone.tokenizer).encode(rows)


def trained_encoder(backbone, num_virtual_tokens):
    """A residual encoder that is no longer at its start, so that gradients reach every parameter."""
    encoder = Residual(initializers.from_vocabulary(backbone.vocabulary_VH, num_virtual_tokens), hidden_size=16)
    with torch.no_grad():
        encoder.network[-1].weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return encoder


def prompt_of(backbone, num_virtual_tokens):
    with torch.no_grad():
        return trained_encoder(backbone, num_virtual_tokens)()


def measured(path, backbone, encoder, batch):
    """Label logits and each encoder parameter's gradient of the loss."""
    encoder.zero_grad()
    logits_NV = path(backbone, encoder(), batch)
    torch.nn.functional.cross_entropy(logits_NV, batch.targets_N).backward()
    return logits_NV.detach(), {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}


def assert_paths_agree(backbone, encoder, batch, rounding=1e-5):
    """Logits within 1e-4, and each parameter's gradient within a share of its norm."""
    reference_NV, reference = measured(splice, backbone, encoder, batch)
    fast_NV, fast = measured(label_logits, backbone, encoder, batch)
    assert fast_NV.shape == (len(batch.targets_N), backbone.model.config.vocab_size)
    assert (fast_NV - reference_NV).abs().max() < 1e-4
    for name, gradient in reference.items():
        assert gradient.norm() > 1e-4
        assert (fast[name] - gradient).norm() < rounding * gradient.norm(), name


def assert_alone_equals_together(backbone, prompt_PH, examples):
    """Each row's logits alone are those it has in a batch, right-padded and left-padded, on both paths."""
    pad_id = backbone.pad_id
    with torch.no_grad():
        alone_NV = torch.cat([splice(backbone, prompt_PH, collate([each], pad_id)) for each in examples])
        for side in ("right", "left"):
            for path in (splice, label_logits):
                together_NV = path(backbone, prompt_PH, collate(examples, pad_id, side))
                assert (together_NV - alone_NV).abs().max() < 1e-4, (side, path)


@pytest.mark.parametrize("num_virtual_tokens", [4, 9])  # gemma3's sliding window is 6
def test_shared_prefix_equals_splice_whatever_the_rows_lengths(any_backbone, num_virtual_tokens):
    lengths = [(3, 1), (12, 2), (7, 1), (1, 3)]
    examples = [example(num_virtual_tokens, *each, seed=i) for i, each in enumerate(lengths)]
    batch = collate(examples, any_backbone.pad_id)
    assert batch.num_prefix_tokens == num_virtual_tokens
    assert_paths_agree(any_backbone, trained_encoder(any_backbone, num_virtual_tokens), batch)


def test_keys_that_nothing_sees_change_nothing(any_backbone, monkeypatch):
    for module in (shared_prefix_module, line_pass):
        monkeypatch.setattr(module, "num_filling", lambda *_: 5)
    batch = collate(
        [example(4, *each, seed=i) for i, each in enumerate([(3, 1), (12, 2), (7, 1)])], any_backbone.pad_id
    )
    assert_paths_agree(any_backbone, trained_encoder(any_backbone, 4), batch)


def test_in_bfloat16_attention_gets_numbers_of_keys_that_softmax_is_fast_for(monkeypatch):
    backbone = tiny_backbone()
    backbone.model.to(torch.bfloat16)
    prompt_PH = initializers.from_vocabulary(backbone.vocabulary_VH, 4)
    batch = collate([example(4, *each, seed=i) for i, each in enumerate([(3, 1), (12, 2), (7, 1)])], backbone.pad_id)
    assert backbone.supports_joint_prefix  # found out by running it, before keys are counted
    assert backbone.supports_packing
    apart = KeptPrompts.same(prompt_PH, Prefix.of(backbone, prompt_PH, batch.prefix_ids), len(batch.ids_BT))
    counted, attend = [], attention.attend
    monkeypatch.setattr(attention, "attend", lambda q, k, *rest: counted.append(k.shape[2]) or attend(q, k, *rest))
    for prompt in (prompt_PH, apart):
        with torch.no_grad():
            label_logits(backbone, prompt, batch)
        assert counted
        assert {each % 32 for each in counted} == {0}
        counted.clear()


def test_shared_prefix_equals_splice_where_slots_follow_the_text(any_backbone):
    batch = collate(templated(any_backbone, "{prompt:3}{text}{prompt:3} is"), any_backbone.pad_id)
    assert batch.prefix_ids == (-1, -2, -3, 0)  # and the begin-of-text token
    assert batch.ids_BT.min() == -6
    assert_paths_agree(any_backbone, trained_encoder(any_backbone, 6), batch)


def test_words_are_run_before_the_rows_with_the_virtual_tokens_that_they_follow(any_backbone):
    batch = collate(templated(any_backbone, "{prompt:3} a film{prompt:2} {text}"), any_backbone.pad_id)
    words = any_backbone.tokenizer(" a film").input_ids
    space = any_backbone.tokenizer(" ", add_special_tokens=False).input_ids
    assert batch.prefix_ids[: 5 + len(words)] == (-1, -2, -3, *words, -4, -5)
    assert len(batch.prefix_ids) <= 5 + len(words) + len(space)
    assert_paths_agree(any_backbone, trained_encoder(any_backbone, 5), batch)


def test_words_alone_that_rows_begin_with_are_run_once_too(backbone):
    batch = collate(templated(backbone, "{text}{prompt:2}:"), backbone.pad_id)
    assert batch.prefix_ids == (0,)
    assert can_share(backbone, prompt_of(backbone, 2), batch)
    assert_paths_agree(backbone, trained_encoder(backbone, 2), batch)
    alone = collate([example(4, 5, 1, seed=0)], backbone.pad_id)
    assert not can_share(backbone, prompt_of(backbone, 4), alone)  # one run is enough for one row


def test_trailing_slot_reaches_the_answer(any_backbone):
    examples = templated(any_backbone, "{text}{prompt:2}:")
    prompt_PH = prompt_of(any_backbone, 2)
    with torch.no_grad():
        one_NV = label_logits(any_backbone, prompt_PH, collate(examples, any_backbone.pad_id))
        other_NV = label_logits(any_backbone, prompt_PH.flip(0), collate(examples, any_backbone.pad_id))
        alone_NV = torch.cat(
            [label_logits(any_backbone, prompt_PH, collate([each], any_backbone.pad_id)) for each in examples]
        )
    assert (one_NV - alone_NV).abs().max() < 1e-4
    assert (one_NV - other_NV).abs().max() > 1e-2


@pytest.mark.parametrize("text_lengths", [(0, 0), (0, 5)])
def test_answer_may_follow_the_prompt_directly(any_backbone, text_lengths):
    examples = [example(4, num_text, 2, seed=num_text) for num_text in text_lengths]
    batch = collate(examples, any_backbone.pad_id)
    assert batch.num_prefix_tokens == 3  # the last virtual token predicts the answer: its own logits are needed
    assert_paths_agree(any_backbone, trained_encoder(any_backbone, 4), batch)


def test_prompt_alone_can_be_the_template(any_backbone):
    examples = templated(any_backbone, "{prompt:4}")
    assert examples[0].ids == [-1, -2, -3, -4, 0]  # the begin-of-text token stands after the virtual tokens
    assert_paths_agree(any_backbone, trained_encoder(any_backbone, 4), collate(examples, any_backbone.pad_id))


@pytest.mark.parametrize("num_virtual_tokens", [4, 9])
def test_rows_score_is_the_same_alone_in_a_batch_and_padded_on_either_side(any_backbone, num_virtual_tokens):
    lengths = [(3, 1), (14, 2), (7, 1), (0, 3)]
    examples = [example(num_virtual_tokens, *each, seed=i) for i, each in enumerate(lengths)]
    assert_alone_equals_together(any_backbone, prompt_of(any_backbone, num_virtual_tokens), examples)


@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(lengths=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 4)), min_size=1, max_size=6))
def test_rows_scores_never_depend_on_their_neighbours(windowed, lengths):
    examples = [example(3, *each, seed=i) for i, each in enumerate(lengths)]
    assert_alone_equals_together(windowed, prompt_of(windowed, 3), examples)


@pytest.fixture(scope="module")
def windowed():
    """The tiny model whose attention looks back six tokens only."""
    return tiny_backbone("gemma3_text")


@pytest.mark.parametrize("path", [splice, label_logits])
def test_real_tokens_as_prompt_are_those_tokens(any_backbone, path):
    words = [310, 42, 299, 310]
    texts = [[5, 6, 7, 301], [330], [11, 12]]
    as_prompt = collate([Example([-1, -2, -3, -4, *text], [9]) for text in texts], any_backbone.pad_id)
    as_text = collate([Example([*words, *text], [9]) for text in texts], any_backbone.pad_id)
    prompt_PH = initializers.from_ids(any_backbone.vocabulary_VH, words)
    with torch.no_grad():
        prompted_NV = path(any_backbone, prompt_PH, as_prompt)
        read_NV = splice(any_backbone, prompt_PH[:0], as_text)
        plain_NV = torch.stack(
            [any_backbone.model(input_ids=torch.tensor([[*words, *text]])).logits[0, -1] for text in texts]
        )
    assert (prompted_NV - read_NV).abs().max() < 1e-5
    assert (read_NV - plain_NV).abs().max() < 1e-5


def test_logits_are_the_models_own_at_the_positions_before_the_labels(any_backbone):
    prompt_PH, row = prompt_of(any_backbone, 5), example(5, 6, 3, seed=0)
    whole_1TH = torch.cat([prompt_PH, any_backbone.embed(torch.tensor([*row.ids[5:], *row.answer_ids]))])[None]
    with torch.no_grad():
        plain_TV = any_backbone.model(inputs_embeds=whole_1TH).logits[0]
        ours_NV = splice(any_backbone, prompt_PH, collate([row], any_backbone.pad_id))
    assert (ours_NV - plain_TV[10:13]).abs().max() < 1e-5


def test_rows_share_one_run_of_the_prompt_and_one_line(backbone, monkeypatch):
    assert backbone.supports_joint_prefix  # found out by running it: before the runs are counted
    sizes = []
    run = type(backbone).run

    def noted(self, **inputs):
        sizes.append(tuple(inputs["inputs_embeds"].shape[:2]))
        return run(self, **inputs)

    monkeypatch.setattr(type(backbone), "run", noted)
    batch = collate([example(4, n, 1, seed=n) for n in (10, 4, 5)], backbone.pad_id)
    label_logits(backbone, prompt_of(backbone, 4), batch)
    assert sizes == [(2, 13)]  # end to end, the prompt among them; a label's own logits are not needed
    monkeypatch.setitem(backbone.__dict__, "supports_joint_prefix", False)
    label_logits(backbone, prompt_of(backbone, 4), batch)
    assert sizes[1:] == [(1, 4), (1, 19)]  # the prompt in a run of its own


@pytest.mark.parametrize("family", ["mamba", "lfm2"])
def test_model_without_a_shareable_cache_is_spliced(family):
    backbone = tiny_backbone(family)
    assert not backbone.supports_prefix_cache
    prompt_PH, examples = prompt_of(backbone, 4), [example(4, n, 1, seed=n) for n in (3, 9, 1)]
    with torch.no_grad():
        together_NV = label_logits(backbone, prompt_PH, collate(examples, backbone.pad_id))
        alone_NV = torch.cat([label_logits(backbone, prompt_PH, collate([each], backbone.pad_id)) for each in examples])
    assert (together_NV - alone_NV).abs().max() < 1e-4
    with pytest.raises(ModelError, match=f"forward: shared_prefix with tiny-{family}; .* Use forward: auto"):
        label_logits(backbone, prompt_PH, collate(examples, backbone.pad_id), path="shared_prefix")


def test_families_with_attention_only_share_their_prefix(any_backbone):
    assert any_backbone.supports_prefix_cache


@pytest.fixture(scope="module")
def reviews(real_backbone):
    """32 reviews of unequal lengths as examples."""
    rows = read_rows(str(REVIEWS), "validation", REVIEW_TASK.columns)[:32]
    return Coder(REVIEW_TASK, real_backbone.tokenizer, real_backbone.max_positions).encode(rows)


@pytest.mark.real_model
def test_shared_prefix_equals_splice_on_real_reviews(real_backbone, reviews):
    batch = collate(reviews[:8], real_backbone.pad_id)
    assert batch.num_prefix_tokens == 22  # and "Review:"
    assert_paths_agree(real_backbone, trained_encoder(real_backbone, 20), batch, rounding=1e-4)


@pytest.mark.real_model
def test_a_real_reviews_scores_do_not_depend_on_its_batch(real_backbone, reviews):
    prompt_PH, pad_id = prompt_of(real_backbone, 20), real_backbone.pad_id
    label_ids = Verbalizer(REVIEW_TASK.verbalizer or {}).token_ids(real_backbone.tokenizer)
    labels_C = torch.tensor(label_ids)[:, 0]

    def scores(path, examples, side="right"):
        logits_BV = path(real_backbone, prompt_PH, collate(examples, pad_id, side))
        return logits_BV.log_softmax(dim=1)[:, labels_C]

    with torch.no_grad():
        alone_BC = torch.cat([scores(splice, [each]) for each in reviews])
        for path in (splice, label_logits):
            for side in ("right", "left"):
                assert (scores(path, reviews, side) - alone_BC).abs().max() < 1e-4, (path, side)
        assert (
            label_log_probs(real_backbone, prompt_PH, reviews, [label_ids] * len(reviews)) - alone_BC
        ).abs().max() < 1e-4
