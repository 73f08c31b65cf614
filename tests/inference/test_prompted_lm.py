"""Answers are those of the plain definitions, in the rows' order, whatever the batch and the prompt of each row."""

import dataclasses
import functools

import pandas
import pytest
import torch
from conftest import ASSETS
from families import tiny_backbone

from ptuning.data.batches import collate
from ptuning.data.coder import Coder
from ptuning.data.examples import Example
from ptuning.data.readers import Row, read_rows
from ptuning.data.task import Task
from ptuning.errors import DataError, OutOfMemoryError, PromptError
from ptuning.forward import objective
from ptuning.forward.paths import label_logits
from ptuning.forward.splice import splice
from ptuning.inference.ensemble import Classification, Ensemble
from ptuning.inference.prompt_library import prompt_of_rows
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.prompts.initializers import from_vocabulary
from ptuning.prompts.soft_prompt import SoftPrompt

SENTIMENT = Task("{prompt:4}review: {text}\nsentiment:", verbalizer={"negative": " negative", "positive": " positive"})
FREE = Task("{prompt:3}{text}{prompt:2} is", "{capital}")
ROWS = [
    {"text": "the film was good"},
    {"text": "bad"},
    {"text": "the plot was very dull and the film was bright and very very good"},
    {"text": ""},
    {"text": "a review of the capital"},
]


def prompt_for(backbone, task, seed=0):
    drawn = torch.randn(task.num_virtual_tokens, backbone.width, generator=torch.Generator().manual_seed(seed))
    scale = backbone.vocabulary_VH.std()
    return SoftPrompt(drawn * scale, task, backbone.name, backbone.fingerprint)


def prompted(backbone, batch_size=2):
    prompts = {"sentiment": prompt_for(backbone, SENTIMENT), "free": prompt_for(backbone, FREE, seed=1)}
    return PromptedLM(backbone, prompts, batch_size=batch_size)


@pytest.fixture(scope="module")
def lm(backbone):
    return prompted(backbone)


def examples_of(lm, name, rows=ROWS):
    coder = Coder(lm.prompts[name].task, lm.backbone.tokenizer, lm.backbone.max_positions)
    return coder.encode_prompts([Row(row, "row") for row in rows], 1), coder.label_ids


def greedy(lm, name, example, num_tokens):
    """Each token is the most likely one after the row so far, the whole of which is read anew."""
    written = []
    while len(written) < num_tokens and (not written or written[-1] not in lm.backbone.end_ids):
        batch = collate([Example([*example.ids, *written], [0])], lm.backbone.pad_id)
        with torch.no_grad():
            written.append(int(splice(lm.backbone, lm.prompts[name].embeddings_PH, batch).argmax()))
    return written


def asked(lm, rows, name, encode):
    return lm._asked(rows, lm._single(len(rows), name, ""), lm.prompts.take([name]), encode)


def log_probability(lm, name, row, answer_ids):
    """Of an answer given by its ids, by the reference path."""
    example = dataclasses.replace(examples_of(lm, name, [row])[0][0], answer_ids=answer_ids)
    with torch.no_grad():
        batch = collate([example], lm.backbone.pad_id)
        return float(objective.answer_log_probs(lm.backbone, lm.prompts[name].embeddings_PH, batch, "splice")[0])


def give_ids(lm, monkeypatch):
    """Makes `generate` return the answers' ids, which tell more than their text."""

    def ids_up_to_the_end(backbone, ids_BN, settings):
        rows = ids_BN.tolist()
        ends = [next((i + 1 for i, token in enumerate(ids) if token in lm.backbone.end_ids), len(ids)) for ids in rows]
        assert all(set(ids[end:]) <= {lm.backbone.pad_id} for ids, end in zip(rows, ends, strict=True))
        return [ids[:end] for ids, end in zip(rows, ends, strict=True)]

    monkeypatch.setattr("ptuning.inference.prompted_lm.texts_of", ids_up_to_the_end)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_classification_is_the_softmax_of_the_label_scores_in_the_rows_order(backbone, batch_size):
    lm = prompted(backbone, batch_size)
    expected = []
    for example in (found := examples_of(lm, "sentiment"))[0]:
        with torch.no_grad():
            scores_1C = objective.whole_label_log_probs(
                backbone, lm.prompts["sentiment"].embeddings_PH, [example], [found[1]], "splice"
            )
        expected.append(scores_1C.softmax(dim=1)[0].tolist())
    answers = lm.classify(ROWS, "sentiment")
    assert len({answer.label for answer in answers}) == 2
    for answer, (negative, positive) in zip(answers, expected, strict=True):
        assert isinstance(answer, Classification)
        assert answer.probabilities == pytest.approx({"negative": negative, "positive": positive}, abs=1e-5)
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert answer.label == ("negative" if negative > positive else "positive")


def test_labels_of_several_tokens_are_compared_whole(backbone):
    task = dataclasses.replace(SENTIMENT, verbalizer={"a": " very good", "b": " in the film", "c": " dull"})
    lm = PromptedLM(backbone, {"p": prompt_for(backbone, task)})
    examples, label_ids = examples_of(lm, "p")
    for answer, row in zip(lm.classify(ROWS), ROWS, strict=True):
        scores = torch.tensor([log_probability(lm, "p", row, ids) for ids in label_ids]).softmax(dim=0).tolist()
        assert list(answer.probabilities.values()) == pytest.approx(scores, abs=1e-5)
    assert len(examples) == len(ROWS)


def test_score_is_the_log_probability_of_each_rows_own_answer(lm):
    rows = [{**row, "label": ("negative", "positive")[i % 2]} for i, row in enumerate(ROWS)]
    _, label_ids = examples_of(lm, "sentiment")
    expected = [log_probability(lm, "sentiment", row, label_ids[i % 2]) for i, row in enumerate(ROWS)]
    assert lm.log_probs(rows, "sentiment") == pytest.approx(expected, abs=1e-4)


def test_score_of_an_answer_in_words_counts_its_end_too(lm):
    rows = [{**row, "capital": word} for row, word in zip(ROWS, [" bright", "", "x", " in is", " the"], strict=True)]
    tokenizer = lm.backbone.tokenizer
    answers = [[*tokenizer(row["capital"], add_special_tokens=False).input_ids, tokenizer.eos_token_id] for row in rows]
    expected = [log_probability(lm, "free", row, ids) for row, ids in zip(ROWS, answers, strict=True)]
    assert lm.log_probs(rows, "free") == pytest.approx(expected, abs=1e-4)


def test_score_takes_whole_numbers_as_labels(backbone):
    task = dataclasses.replace(SENTIMENT, verbalizer={"0": " negative", "1": " positive"})
    lm = PromptedLM(backbone, {"p": prompt_for(backbone, task)})
    assert lm.log_probs([{"text": "good", "label": 1}]) == lm.log_probs([{"text": "good", "label": "1"}])


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_greedy_generation_is_the_most_likely_token_step_by_step(any_backbone, batch_size, monkeypatch):
    lm = prompted(any_backbone, batch_size)
    expected = [greedy(lm, "free", example, 7) for example in examples_of(lm, "free")[0]]
    give_ids(lm, monkeypatch)
    assert lm.generate(ROWS, "free", max_new_tokens=7) == expected
    assert len({tuple(ids) for ids in expected}) > 1


def test_prompt_right_before_the_answer_generates_too(any_backbone, monkeypatch):
    task = Task("{text}{prompt:3}", "{capital}")
    lm = PromptedLM(any_backbone, {"p": prompt_for(any_backbone, task)})
    expected = [greedy(lm, "p", example, 5) for example in examples_of(lm, "p")[0]]
    give_ids(lm, monkeypatch)
    assert lm.generate(ROWS, max_new_tokens=5) == expected


def test_generation_gives_text_without_special_tokens(lm, monkeypatch):
    tokenizer = lm.backbone.tokenizer
    expected = [tokenizer.decode(greedy(lm, "free", example, 5)) for example in examples_of(lm, "free")[0]]
    assert lm.generate(ROWS, "free", max_new_tokens=5) == expected
    written = torch.tensor([[310, 311, 1, 2], [310, 0, 311, 1]])
    monkeypatch.setattr(lm.backbone, "generate", lambda *_, **__: written)
    text = tokenizer.decode([310, 311])
    assert lm.generate(ROWS[:2], "free") == [text, text]


def test_generation_stops_each_row_at_an_end_of_the_models_own(monkeypatch):
    lm = prompted(tiny_backbone(), batch_size=32)
    without_end = [greedy(lm, "free", example, 6) for example in examples_of(lm, "free")[0]]
    end = next(ids[2] for ids in without_end if ids[2] not in ids[:2])
    lm.backbone.model.generation_config.eos_token_id = [1, end]
    expected = [ids[: ids.index(end) + 1] if end in ids else ids for ids in without_end]
    assert len({len(ids) for ids in expected}) > 1
    give_ids(lm, monkeypatch)
    assert lm.generate(ROWS, "free", max_new_tokens=6) == expected


def test_beams_find_likelier_answers_than_greedy_generation(lm, monkeypatch):
    give_ids(lm, monkeypatch)
    one = lm.generate(ROWS, "free", max_new_tokens=4)
    several = lm.generate(ROWS, "free", max_new_tokens=4, num_beams=8)
    assert one != several
    assert lm.generate(ROWS, "free", max_new_tokens=4, num_beams=1) == one
    total = {name: sum(log_probability(lm, "free", *each) for each in zip(ROWS, answers, strict=True))
             for name, answers in (("one", one), ("several", several))}  # fmt: skip
    assert total["several"] > total["one"]


def test_sampling_depends_on_its_seed(lm):
    def sample(seed):
        torch.manual_seed(seed)
        return lm.generate(ROWS, "free", max_new_tokens=6, do_sample=True, top_k=20)

    assert sample(0) == sample(0)
    assert sample(0) != sample(1)


@pytest.mark.parametrize("method", ["classify", "log_probs", "generate"])
def test_each_row_may_have_its_own_prompt(backbone, method):
    prompts = {"one": prompt_for(backbone, SENTIMENT), "other": prompt_for(backbone, SENTIMENT, seed=5)}
    lm = PromptedLM(backbone, prompts, batch_size=2)
    rows = [{**row, "label": "positive"} for row in ROWS]
    names = ["one", "other", "other", "one", "other"]
    options = {"max_new_tokens": 4} if method == "generate" else {}
    call = getattr(lm, method)
    separate = [call([row], name, **options)[0] for row, name in zip(rows, names, strict=True)]
    mixed = call(rows, names, **options)
    swapped = call(rows, names[::-1], **options)

    def plain(answer):
        return answer.probabilities["positive"] if isinstance(answer, Classification) else answer

    if method == "generate":
        assert mixed == separate
    else:
        assert [plain(answer) for answer in mixed] == pytest.approx([plain(answer) for answer in separate], abs=1e-5)
    assert swapped != mixed


def test_rows_of_prompts_with_other_templates_are_told_apart(lm):
    rows = [{"text": "good", "capital": " bright"}, {"text": "good", "label": "positive"}]
    scores = lm.log_probs(rows, ["free", "sentiment"])
    assert scores == pytest.approx(
        [lm.log_probs(rows[:1], "free")[0], lm.log_probs(rows[1:], "sentiment")[0]], abs=1e-5
    )


def test_only_prompt_needs_no_name(backbone, lm):
    alone = PromptedLM(backbone, {"sentiment": lm.prompts["sentiment"]})
    assert alone.classify(ROWS) == alone.classify(ROWS, "sentiment")
    assert alone.classify([]) == []


def test_saved_prompts_are_loaded_by_name(backbone, lm, model_directory, tmp_path):
    directories = {name: prompt.save(tmp_path / name) for name, prompt in lm.prompts.items()}
    loaded = PromptedLM.from_pretrained(model_directory, directories, dtype="float32", device="cpu", batch_size=2)
    given = PromptedLM.from_pretrained(model_directory, lm.prompts, dtype="float32", device="cpu", batch_size=2)
    for other in (loaded, given):
        answers = zip(other.classify(ROWS, "sentiment"), lm.classify(ROWS, "sentiment"), strict=True)
        assert all(one.probabilities == pytest.approx(same.probabilities, abs=1e-6) for one, same in answers)
    assert loaded.generate(ROWS, "free", max_new_tokens=4) == lm.generate(ROWS, "free", max_new_tokens=4)


def test_base_and_prompts_stay_as_they_are():
    lm = prompted(tiny_backbone())
    weights = lm.backbone.weights_sha256()
    embeddings = {name: prompt.embeddings_PH.clone() for name, prompt in lm.prompts.items()}
    lm.classify(ROWS, "sentiment")
    lm.generate(ROWS, ["free", "sentiment", "free", "free", "sentiment"], max_new_tokens=3, do_sample=True)
    assert lm.backbone.weights_sha256() == weights
    assert all(torch.equal(prompt.embeddings_PH, embeddings[name]) for name, prompt in lm.prompts.items())


def test_rows_given_stay_as_they_are(lm):
    rows = [{"text": 5, "other": None}]
    lm.classify(rows, "sentiment")
    assert rows == [{"text": 5, "other": None}]


def test_progress_is_shown_only_where_it_is_asked_for(backbone, lm, capsys):
    lm.classify(ROWS, "sentiment")
    assert capsys.readouterr().err == ""
    PromptedLM(backbone, lm.prompts, progress=True).classify(ROWS, "sentiment")
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("topic", "prompt='topic'; expected one of sentiment, free"),
        (["sentiment"] * 4 + ["topic"], "prompt='topic'; expected one of sentiment, free"),
        (["sentiment"] * 4, "4 prompt names for 5 rows; expected a prompt's name, or one per row"),
        (["sentiment"] * 6, "6 prompt names for 5 rows"),
        (None, "0 prompt names for 5 rows"),
    ],
)
def test_names_that_fit_no_prompt_or_no_row_are_told(lm, prompt, told):
    with pytest.raises(PromptError, match=told):
        lm.classify(ROWS, prompt)


def test_classifying_needs_a_verbalizer(lm):
    with pytest.raises(PromptError, match=r"classify with prompt 'free', which has no verbalizer; .* Use generate"):
        lm.classify(ROWS, "free")


@pytest.mark.parametrize("method", ["classify", "log_probs", "generate"])
def test_prompt_without_a_task_is_told(backbone, lm, method):
    bare = dataclasses.replace(lm.prompts["sentiment"], task=None)
    with pytest.raises(PromptError, match=r"prompt 'bare' without a task .* Give it one: dataclasses\.replace"):
        getattr(PromptedLM(backbone, {"bare": bare}), method)(ROWS)


def test_prompts_of_another_base_are_refused_unless_allowed(lm):
    other = tiny_backbone(seed=1)
    with pytest.raises(PromptError, match="another base gives it another meaning"):
        PromptedLM(other, lm.prompts)
    allowed = PromptedLM(other, lm.prompts, allow_other_base=True)
    assert allowed.classify(ROWS, "sentiment") != lm.classify(ROWS, "sentiment")


@pytest.mark.parametrize(
    ("row", "told"),
    [({"txt": "a"}, "row 1 has no column 'text'"), ({"text": None}, "row 1: column 'text' holds None; expected text")],
)
def test_bad_row_is_named_by_its_number(lm, row, told):
    with pytest.raises(DataError, match=told):
        lm.classify([ROWS[0], row], "sentiment")


def test_score_names_a_row_without_an_answer(lm):
    with pytest.raises(DataError, match="row 1 has no column 'label'"):
        lm.log_probs([{"text": "a", "label": "positive"}, {"text": "a"}], "sentiment")


def test_answer_longer_than_the_models_positions_is_refused():
    lm = prompted(tiny_backbone("gpt2"))
    assert len(lm.generate(ROWS, "free", max_new_tokens=70)) == len(ROWS)
    with pytest.raises(DataError, match="row 0 needs 7 tokens before any of its 'text'; expected at most 6"):
        lm.generate(ROWS, "free", max_new_tokens=90)


def test_text_is_cut_to_leave_room_for_the_answer(monkeypatch):
    lm = prompted(tiny_backbone("gpt2"))
    lengths = []
    generate = lm.backbone.model.generate

    def noted(**inputs):
        lengths.append(inputs["inputs_embeds"].shape[1])
        return generate(**inputs)

    monkeypatch.setattr(lm.backbone.model, "generate", noted)
    lm.generate([{"text": " good" * 200}], "free", max_new_tokens=10)
    assert lengths == [86]


@pytest.mark.parametrize(
    "options",
    [{"num_return_sequences": 2}, {"return_dict_in_generate": True}],
)
def test_options_that_would_not_give_one_text_a_row_are_refused(lm, options):
    with pytest.raises(PromptError, match=rf"{next(iter(options))}=.*; expected options that give one text per row"):
        lm.generate(ROWS, "free", **options)


def test_options_may_name_another_end(lm, monkeypatch):
    first = greedy(lm, "free", examples_of(lm, "free")[0][0], 1)[0]
    noted = {}
    generate = lm.backbone.model.generate
    monkeypatch.setattr(lm.backbone.model, "generate", lambda **inputs: noted.update(inputs) or generate(**inputs))
    lm.generate(ROWS[:1], "free", max_new_tokens=5, eos_token_id=first)
    assert noted["eos_token_id"] == first


@pytest.mark.parametrize("method", ["classify", "log_probs", "generate"])
def test_rows_that_were_cut_are_told(lm, caplog, method):
    task = dataclasses.replace(SENTIMENT, max_length=40)
    short = PromptedLM(lm.backbone, {"p": prompt_for(lm.backbone, task)})
    rows = [{"text": " good" * 40, "label": "positive"}, {"text": "a", "label": "positive"}]
    getattr(short, method)(rows[1:])
    assert caplog.text == ""
    getattr(short, method)(rows)
    assert "answering: 1 of 2 rows lost the end of their text" in caplog.text


def test_hub_model_is_loaded_at_the_revision_that_the_prompt_was_tuned_on(backbone, tmp_path, monkeypatch):
    prompt = dataclasses.replace(prompt_for(backbone, SENTIMENT), base_name="org/name", revision="v2")
    directory = prompt.save(tmp_path / "prompt")
    asked = []

    def from_pretrained(base, **options):
        asked.append((base, *options.values()))
        return backbone

    monkeypatch.setattr("ptuning.inference.prompted_lm.Backbone.from_pretrained", from_pretrained)
    for base in ("org/name", "org/other"):
        PromptedLM.from_pretrained(base, {"p": directory}, trust_remote_code=base == "org/other")
    assert asked == [
        ("org/name", "auto", "auto", "v2", False, "none"),
        ("org/other", "auto", "auto", None, True, "none"),
    ]


def test_rows_with_different_prompts_are_read_in_one_forward(backbone, monkeypatch):
    lm = prompted(backbone, batch_size=32)
    lm.prompts["long"] = prompt_for(backbone, dataclasses.replace(SENTIMENT, template="{prompt:9}{text}"), seed=3)
    names = ["sentiment", "long", "long", "sentiment", "sentiment"]
    alone = [lm.classify([row], name)[0] for row, name in zip(ROWS, names, strict=True)]
    sizes = []
    run = type(backbone).run
    monkeypatch.setattr(
        type(backbone), "run", lambda self, **i: sizes.append(len(i["inputs_embeds"])) or run(self, **i)
    )
    together = lm.classify(ROWS, names)
    assert len(sizes) == 1
    for one, other in zip(together, alone, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_prompts_may_have_different_labels(backbone):
    three = {"a": " very good", "b": " in the film", "c": " dull"}
    lm = prompted(backbone, batch_size=32)
    lm.prompts["three"] = prompt_for(backbone, dataclasses.replace(SENTIMENT, verbalizer=three), seed=3)
    names = ["sentiment", "three", "sentiment", "three", "three"]
    alone = [lm.classify([row], name)[0] for row, name in zip(ROWS, names, strict=True)]
    for one, other in zip(lm.classify(ROWS, names), alone, strict=True):
        assert one.label == other.label
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert set(alone[1].probabilities) == set(three)


@pytest.fixture
def three(backbone):
    return PromptedLM(backbone, {name: prompt_for(backbone, SENTIMENT, seed) for seed, name in enumerate("abc")})


def test_ensemble_averages_its_prompts_probabilities(three):
    single = [three.classify(ROWS, name) for name in "abc"]
    for i, answer in enumerate(three.classify(ROWS, Ensemble(("a", "b", "c")))):
        mean = sum(each[i].probabilities["positive"] for each in single) / 3
        assert answer.probabilities["positive"] == pytest.approx(mean, abs=1e-6)
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert answer.label == ("positive" if mean > 0.5 else "negative")


def test_ensemble_may_count_votes(three):
    single = [three.classify(ROWS, name) for name in "abc"]
    answers = three.classify(ROWS, Ensemble(("a", "b", "c"), "majority"))
    for i, answer in enumerate(answers):
        votes = sum(each[i].label == "positive" for each in single)
        assert answer.probabilities == pytest.approx({"negative": 1 - votes / 3, "positive": votes / 3})
        assert answer.label == ("positive" if votes > 1 else "negative")
    assert len({answer.probabilities["positive"] for answer in answers}) > 1


def test_ensembles_and_single_prompts_share_a_batch(three):
    choices = ["a", Ensemble(("b", "c")), "b", Ensemble(("a",)), Ensemble(("a", "c"), "majority")]
    alone = [three.classify([row], choice)[0] for row, choice in zip(ROWS, choices, strict=True)]
    for one, other in zip(three.classify(ROWS, choices), alone, strict=True):
        assert (one.label, one.probabilities) == (other.label, pytest.approx(other.probabilities, abs=1e-5))


def test_ensembles_that_cannot_be_are_refused(three, backbone):
    three.prompts["other"] = prompt_for(backbone, dataclasses.replace(SENTIMENT, verbalizer={"x": " a", "y": " the"}))
    for prompts in [("a", "other")]:
        with pytest.raises(PromptError, match=r"an ensemble of .*; expected prompts with the same labels"):
            three.classify(ROWS, Ensemble(prompts))
    with pytest.raises(PromptError, match="prompt='z'"):
        three.classify(ROWS, Ensemble(("a", "z")))
    for method in (three.log_probs, three.generate):
        with pytest.raises(PromptError, match=r"(log_probs|generate) with an ensemble; expected a prompt's name"):
            method(ROWS, Ensemble(("a", "b")))


@pytest.mark.parametrize("method", ["classify", "log_probs", "generate"])
@pytest.mark.parametrize("limit", [60, 100])
def test_no_batch_has_more_tokens_than_allowed_and_rows_keep_their_order(backbone, method, limit, monkeypatch):
    sizes = []
    forward = backbone.model.forward

    @functools.wraps(forward)  # transformers looks at what the model takes
    def noted(**inputs):
        mask, cache = inputs.get("attention_mask"), inputs.get("past_key_values")
        length = 0 if cache is None else cache.get_seq_length()
        given = inputs["inputs_embeds"] if inputs.get("inputs_embeds") is not None else inputs["input_ids"]
        sizes.append(given.shape[0] * (given.shape[1] + length))
        assert mask is None or mask.shape[-1] == given.shape[1] + length
        return forward(**inputs)

    def answers(lm):
        made = getattr(lm, method)(rows, names, **options)
        return [each.label if isinstance(each, Classification) else each for each in made]

    rows = [{**ROWS[i % len(ROWS)], "label": "positive", "capital": "x"} for i in range(23)]
    names = ["sentiment"] * 12 + ["long"] * 11
    options = {"max_new_tokens": 3} if method == "generate" else {}
    prompts = {"sentiment": prompt_for(backbone, SENTIMENT)}
    prompts["long"] = prompt_for(backbone, dataclasses.replace(SENTIMENT, template="{prompt:9}{text}"), seed=3)
    expected = answers(PromptedLM(backbone, prompts))
    bounded = PromptedLM(backbone, prompts, max_batch_tokens=limit)
    for name in prompts:
        bounded.prompts.ready(name)
    monkeypatch.setattr(backbone.model, "forward", noted)
    received = answers(bounded)
    assert received == (pytest.approx(expected, abs=1e-4) if method == "log_probs" else expected)
    assert limit / 2 < max(sizes) <= limit


@pytest.mark.parametrize(
    "answers",
    [
        lambda lm: lm.classify(ROWS),
        lambda lm: lm.log_probs([{**row, "label": "positive"} for row in ROWS]),
        lambda lm: lm.generate(ROWS, max_new_tokens=2),
        lambda lm: list(lm.generate(ROWS, max_new_tokens=2, stream=True)),
        lambda lm: lm.conversation().send(ROWS[0]),
    ],
)
def test_rows_that_do_not_fit_into_memory_are_told(backbone, monkeypatch, answers):
    lm = PromptedLM(backbone, {"p": prompt_for(backbone, SENTIMENT)})
    answers(lm)

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backbone.model, "forward", fail)
    with pytest.raises(OutOfMemoryError, match=r"out of memory with \d rows? \(\d+ tokens\) at once"):
        answers(lm)


def test_row_that_alone_has_too_many_tokens_is_told_before_anything_runs(backbone, monkeypatch):
    lm = PromptedLM(backbone, {"p": prompt_for(backbone, SENTIMENT)}, max_batch_tokens=30)
    monkeypatch.setattr(backbone.model, "forward", pytest.fail)
    with pytest.raises(
        DataError,
        match=r"row 2 of \d+ tokens, .*expected at most 30, the tokens that a batch",
    ):
        lm.classify(ROWS)


@pytest.mark.parametrize("method", ["classify", "generate"])
def test_disabled_prompt_is_the_base_model_with_the_same_words(backbone, method):
    prompt = prompt_for(backbone, SENTIMENT)
    lm = PromptedLM(backbone, {"on": prompt, "off": prompt.disabled()}, batch_size=32)
    mixed = getattr(lm, method)(ROWS * 2, ["off", "on"] * 5)
    ids = [backbone.tokenizer(f"review: {row['text']}\nsentiment:").input_ids for row in ROWS]
    with torch.no_grad():
        logits = [backbone.model(torch.tensor([each])).logits[0, -1] for each in ids]
        written = [backbone.model.generate(torch.tensor([each]), max_new_tokens=50, do_sample=False) for each in ids]
    offs = {i % 5: mixed[i] for i in range(0, 10, 2)}
    label_ids = [
        backbone.tokenizer(text, add_special_tokens=False).input_ids[0] for text in SENTIMENT.verbalizer.values()
    ]
    for i, answer in offs.items():
        if method == "classify":
            scores = logits[i][label_ids].softmax(dim=0).tolist()
            assert list(answer.probabilities.values()) == pytest.approx(scores, abs=1e-5)
        else:
            assert answer == backbone.tokenizer.decode(written[i][0, len(ids[i]) :], skip_special_tokens=True)


@pytest.mark.parametrize("method", ["classify", "log_probs", "generate"])
def test_row_whose_text_joins_the_words_before_it_is_read_whole(backbone, method):
    task = dataclasses.replace(SENTIMENT, template="{prompt:4} the go{text}:")
    lm = PromptedLM(backbone, {"p": prompt_for(backbone, task)}, batch_size=32)
    rows = [{"text": text, "label": "positive"} for text in ("od", "ne", "", "od film", " and")]  # good is one token
    run = [each.prompt.prefix_length(each.example) for each in asked(lm, rows, "p", Coder.encode)]
    assert [num is None for num in run] == [True, False, False, True, False]
    reference = PromptedLM(backbone, {"p": prompt_for(backbone, task)})
    expected = []
    for row in rows:
        example = asked(reference, [row], "p", Coder.encode)[0].example
        expected.append(log_probability(reference, "p", row, example.answer_ids))
    assert lm.log_probs(rows) == pytest.approx(expected, abs=1e-4)
    options = {"max_new_tokens": 4} if method == "generate" else {}
    together = getattr(lm, method)(rows, **options)
    for row, answer in zip(rows, together, strict=True):
        alone = getattr(lm, method)([row], **options)[0]
        if method == "classify":
            assert answer.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        else:
            assert answer == (pytest.approx(alone, abs=1e-4) if method == "log_probs" else alone)


def test_batch_that_does_not_begin_with_the_kept_prefixes_is_spliced(backbone):
    lm = prompted(backbone)
    other = PromptedLM(
        backbone, {"p": prompt_for(backbone, dataclasses.replace(SENTIMENT, template="{prompt:4}x{text}"))}
    )
    examples = [each.example for each in asked(other, ROWS, "p", Coder.encode_questions)]
    batch = backbone.collate([dataclasses.replace(each, answer_ids=[5]) for each in examples])
    prompts = prompt_of_rows([lm.prompts.ready("sentiment")] * 5)
    assert not prompts.shares(batch)
    assert prompt_of_rows([other.prompts.ready("p")] * 5).shares(batch)
    with torch.no_grad():
        logits_NV = label_logits(backbone, prompts, batch)
        assert torch.equal(logits_NV, splice(backbone, lm.prompts["sentiment"].embeddings_PH, batch))


def test_row_before_whose_answer_nothing_stands_is_told(backbone, monkeypatch):
    monkeypatch.setattr("ptuning.data.coder.frame_ids", lambda tokenizer: ([], []))
    task = dataclasses.replace(SENTIMENT, template="{prompt:4}{text}")
    prompt = prompt_for(backbone, task)
    lm = PromptedLM(backbone, {"on": prompt, "off": prompt.disabled()})
    rows = [{"text": "a", "label": "positive"}, {"text": "", "label": "positive"}]
    for method in (lm.classify, lm.log_probs, lm.generate):
        assert len(method(rows, "on")) == 2
        with pytest.raises(DataError, match=r"row 1 with no tokens before the answer .prompt 'off'."):
            method(rows, "off")


@pytest.mark.parametrize(
    ("options", "told"), [({"batch_size": 0}, "batch_size=0"), ({"max_batch_tokens": -1}, "max_batch_tokens=-1")]
)
def test_batches_of_nothing_are_refused(backbone, options, told):
    with pytest.raises(PromptError, match=f"{told}; expected an integer above 0"):
        PromptedLM(backbone, {}, **options)


def test_model_without_prompts_says_so(backbone):
    with pytest.raises(PromptError, match="prompt='x'; expected a loaded prompt, but there is none"):
        PromptedLM(backbone, {}).classify(ROWS, "x")
    with pytest.raises(PromptError, match="0 prompt names for 5 rows"):
        PromptedLM(backbone, {}).classify(ROWS)
    for call in (PromptedLM(backbone, {}).task, PromptedLM(backbone, {}).columns):
        with pytest.raises(PromptError, match="prompt='x'"):
            call("x")


@pytest.mark.real_model
def test_eight_prompts_answer_real_reviews_in_one_batch_as_each_alone(real_backbone):
    rows = [dict(row.values) for row in read_rows(str(ASSETS / "movie_reviews" / "test.csv"), "test", ("text",))[:16]]
    task = dataclasses.replace(SENTIMENT, template="{prompt:20}Review: {text}\nSentiment:")
    prompts = {}
    for k in range(8):
        length = 4 + 3 * k
        own = dataclasses.replace(task, template=f"{{prompt:{length}}}Review: {{text}}\nSentiment:")
        start_PH = from_vocabulary(real_backbone.vocabulary_VH, length, seed=k)
        prompts[str(k)] = SoftPrompt(start_PH, own, real_backbone.name, real_backbone.fingerprint)
    lm, names = PromptedLM(real_backbone, prompts), [str(i % 8) for i in range(16)]
    alone = [lm.classify([row], name)[0].probabilities["positive"] for row, name in zip(rows, names, strict=True)]
    assert [each.probabilities["positive"] for each in lm.classify(rows, names)] == pytest.approx(alone, abs=1e-4)


def test_a_frame_texts_and_a_generator_are_answered_like_rows(lm):
    texts = [row["text"] for row in ROWS]
    expected = lm.classify(ROWS, "sentiment")
    for given in (pandas.DataFrame(ROWS), texts, iter(ROWS)):
        assert lm.classify(given, "sentiment") == expected
    assert lm.generate(texts, "free", max_new_tokens=2) == lm.generate(ROWS, "free", max_new_tokens=2)
    answered = [{**row, "label": "negative"} for row in ROWS]
    assert lm.log_probs(pandas.DataFrame(answered), "sentiment") == lm.log_probs(answered, "sentiment")


@pytest.mark.parametrize(("given", "told"), [("a film", "str 'a film'"), ({"text": "a film"}, "dict")])
def test_one_text_or_one_row_by_itself_is_told(lm, given, told):
    with pytest.raises(DataError, match=f"{told}.*; expected a list of rows"):
        lm.classify(given, "sentiment")
