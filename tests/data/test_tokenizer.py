"""Text behind other text has the tokens of running text, whatever a tokenizer puts before a text by itself."""

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from families import PREFIX_SPACE, TOKENIZERS, tiny_tokenizer
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ptuning.data.coder import Coder, TemplateEncoder
from ptuning.data.readers import Row
from ptuning.data.task import Task, Verbalizer
from ptuning.data.template import Template
from ptuning.data.tokenizer import RunningText, Stretch, frame_ids, text_ids
from ptuning.errors import ConfigError

BY_KIND = {kind: tiny_tokenizer(kind=kind) for kind in TOKENIZERS}
VERBALIZER = {"n": " negative", "p": " positive"}
MARKED = tuple(kind for kind in TOKENIZERS if not kind.startswith("byte-level"))


def ids_of(kind: str, text: str) -> list[int]:
    """The tokenizer's own ids of a whole text."""
    return list(BY_KIND[kind](text, add_special_tokens=False).input_ids)


def tokens(kind: str, ids: list[int]) -> list[str]:
    return BY_KIND[kind].convert_ids_to_tokens([i for i in ids if i >= 0])


def coder(kind: str, template: str, answer: str = "{label}", verbalizer: dict[str, str] | None = None) -> Coder:
    return Coder(Task(template, answer, verbalizer), BY_KIND[kind])


# Labels and answers


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_label_with_a_space_is_the_word_of_running_text(kind: str) -> None:
    whole = ids_of(kind, "Review: a\nSentiment: negative")
    (example,) = coder(kind, "{prompt:2}Review: {text}\nSentiment:", verbalizer=VERBALIZER).encode(
        [Row({"text": "a", "label": "n"}, "row")]
    )
    assert example.ids == [-1, -2, 0, *whole[:-1]]
    assert example.answer_ids == whole[-1:]
    assert tokens(kind, example.answer_ids)[0].endswith("negative")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_label_without_a_space_gets_none(kind: str) -> None:
    verbalizer = {label: text.strip() for label, text in VERBALIZER.items()}
    label_ids = coder(kind, "{prompt:2}{text}\nSentiment:", verbalizer=verbalizer).label_ids
    before = ids_of(kind, "\nSentiment:")
    assert [[*before, *ids] for ids in label_ids] == [
        ids_of(kind, f"\nSentiment:{text}") for text in verbalizer.values()
    ]
    assert tokens(kind, label_ids[0]) == list("negative")


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", ["{prompt:2}{text}", "{text}:{prompt:2}", "{prompt:1}a {text}{prompt:1}"])
def test_generated_text_and_labels_are_tokenized_alike(kind: str, template: str) -> None:
    (example,) = coder(kind, template, " {label}").encode([Row({"text": "film", "label": "negative"}, "row")])
    label_ids = coder(kind, template, verbalizer=VERBALIZER).label_ids[0]
    assert example.answer_ids == [*label_ids, BY_KIND[kind].eos_token_id]
    assert len(label_ids) == 1


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_template_of_slots_alone_leaves_the_answer_as_the_first_text(kind: str) -> None:
    assert coder(kind, "{prompt:2}", verbalizer=VERBALIZER).label_ids == text_ids(
        BY_KIND[kind], list(VERBALIZER.values())
    )


def test_a_decoders_answer_is_a_text_by_itself() -> None:
    tokenizer = tiny_tokenizer("$A </s>", "unigram")
    own = Coder(Task("{prompt:2}{text}:", verbalizer={"n": "negative", "p": "positive"}), tokenizer, closes=True)
    assert tokenizer.convert_ids_to_tokens([ids[0] for ids in own.label_ids]) == ["▁negative", "▁positive"]


@pytest.mark.parametrize("kind", PREFIX_SPACE)
def test_labels_that_begin_each_other_are_found_behind_text(kind: str) -> None:
    with pytest.raises(ConfigError, match="' good' of 'x' begins ' good film' of 'y'"):
        Verbalizer({"x": " good", "y": " good film"}).token_ids(BY_KIND[kind])


# Slots in mid-template, chats, cutting


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_text_behind_a_slot_has_the_tokens_of_running_text(kind: str) -> None:
    (example,) = coder(kind, "{prompt:2}{a}{prompt:2} is the capital of", " {b}").encode(
        [Row({"a": "a film", "b": "the plot"}, "row")]
    )
    first, rest = ids_of(kind, "a film"), ids_of(kind, "a film is the capital of the plot")[2:]
    assert example.ids == [-1, -2, 0, *first, -3, -4, *rest[:4]]
    assert example.answer_ids == [*rest[4:], BY_KIND[kind].eos_token_id]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_first_text_is_as_the_tokenizer_has_it_whatever_stands_before(kind: str) -> None:
    for template, row in (("{prompt:2}{text}", "good film"), ("{text}{prompt:2} good film", "")):
        (example,) = coder(kind, template).encode_questions([Row({"text": row}, "row")])
        text = row or " good film"
        assert [i for i in example.ids if i >= 0] == [0, *ids_of(kind, text)]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_chat_and_its_answer_have_the_tokens_of_the_whole_conversation(kind: str) -> None:
    tokenizer = BY_KIND[kind]
    task = Task("{prompt:2}a {text}{prompt:1} film", chat_template=True, verbalizer={"n": "bad", "p": "good"})
    (example,) = Coder(task, tokenizer).encode([Row({"text": "good", "label": "n"}, "row")])
    framed = "<s>user: a good film</s><s>assistant:"
    assert [i for i in [*example.ids, *example.answer_ids] if i >= 0] == ids_of(kind, f"{framed}bad")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_answer_behind_a_special_token_is_as_the_tokenizer_has_it_there(kind: str) -> None:
    label_ids = coder(kind, "{prompt:2}{text}<s>", verbalizer={"n": "bad", "p": "good"}).label_ids
    assert [[0, *ids] for ids in label_ids] == [ids_of(kind, "<s>bad"), ids_of(kind, "<s>good")]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_conversations_next_turn_goes_on_as_running_text(kind: str) -> None:
    whole = ids_of(kind, "a good film is the plot")
    assert coder(kind, "{prompt:2}{text}").next_ids(" is the plot") == whole[3:]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_cut_row_is_the_longest_beginning_that_fits(kind: str) -> None:
    encoder = TemplateEncoder(Template.parse("{prompt:2}a{prompt:1}{text}{prompt:1}:"), BY_KIND[kind])
    room = 12
    (cut,) = encoder.encode([{"text": " very dull" * 9}], [room], str)
    kept = [encoder.encode([{"text": (" very dull" * 9)[:n]}], [99], str)[0].ids for n in range(91)]
    fitting = [ids for ids in kept if len(ids) <= room]
    assert cut.was_cut
    assert cut.ids in fitting
    assert len(cut.ids) == max(map(len, fitting))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("frame", ["<s> $A", "$A </s>", "<s> $A </s>"])
def test_what_the_tokenizer_adds_around_a_text_stands_around_the_row_alone(kind: str, frame: str) -> None:
    tokenizer = tiny_tokenizer(frame, kind)
    begin, end = frame_ids(tokenizer)
    assert (begin, end) == ([0] * frame.startswith("<s>"), [1] * frame.endswith("</s>"))
    for closes in (False, True):
        task = Task("{prompt:1}a {text}{prompt:1} film", " {label}")
        (example,) = Coder(task, tokenizer, closes=closes).encode([Row({"text": "good", "label": "bad"}, "row")])
        ids = [i for i in example.ids if i >= 0]
        assert ids == [*begin, *ids_of(kind, "a good film"), *(end if closes else [])]
        assert example.answer_ids[-1] == 1
        assert not {0, 1} & set(example.answer_ids[:-1])


# Any text


TEXTS = st.text(st.sampled_from("agod film:.'(1\n")) | st.sampled_from(
    [" good film", "the plot", " <s>", " ", "é\u0301"]
)
PARTS = st.lists(TEXTS, min_size=1, max_size=4)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(texts=PARTS, ending=TEXTS.filter(bool), answer=TEXTS.filter(bool))
@settings(deadline=None)
def test_a_row_without_its_slots_has_the_tokenizers_own_ids_where_stretches_meet_between_tokens(
    kind: str, texts: list[str], ending: str, answer: str
) -> None:
    names = [f"c{i}" for i in range(len(texts))]
    own = coder(kind, "{prompt:1}".join([*(f"{{{name}}}" for name in names), ending]))
    (example,) = own.encode([Row({**dict(zip(names, texts, strict=True)), "label": answer}, "row")])
    plain = [*(own.plain(text) for text in texts), ending, own.plain(answer)]
    whole = ids_of(kind, "".join(plain))
    beginnings = [ids_of(kind, "".join(plain[:count])) for count in range(1, len(plain))]
    assume(all(ids == whole[: len(ids)] for ids in beginnings))
    assume(all(ids[-1:] != [BY_KIND[kind].unk_token_id] for ids in beginnings))  # unknown characters share a token
    assert [i for i in [*example.ids, *example.answer_ids] if i >= 0] == [0, *whole, 1]


@pytest.mark.parametrize("kind", ["byte-level", "metaspace-never"])
@given(text=TEXTS, before=TEXTS)
@settings(deadline=None)
def test_a_tokenizer_that_adds_no_space_has_the_same_ids_behind_a_text_as_alone(
    kind: str, text: str, before: str
) -> None:
    assert RunningText(BY_KIND[kind]).ids([Stretch(text, before)]) == [ids_of(kind, text)]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_stretches_are_tokenized_one_by_one(kind: str) -> None:
    running = RunningText(BY_KIND[kind])
    befores = ("", None, "a ", "good film:", "<s>")
    stretches = [Stretch(text, before) for text in ("", " good", "good", "1st", ":)", "\n") for before in befores]
    assert running.ids(stretches) == [running.ids([each])[0] for each in stretches]
    assert running.ids([]) == []


@pytest.mark.parametrize(("before", "text"), [("é", "é film"), ("", "é film"), ("é", "\u0301")])
def test_unknown_characters_are_not_lost_in_those_before_them(before: str, text: str) -> None:
    tokenizer = BY_KIND["prepend"]
    assert RunningText(tokenizer).ids([Stretch(text, before)])[0][0] == tokenizer.unk_token_id


# Threads


def run_together(work: Callable[[], None], num_threads: int = 8) -> list[BaseException]:
    """Starts the same work in several threads at once; gives what they raised."""
    raised: list[BaseException] = []
    barrier = threading.Barrier(num_threads)

    def start() -> None:
        barrier.wait()
        try:
            work()
        except BaseException as error:  # told by the caller, whatever it is
            raised.append(error)

    threads = [threading.Thread(target=start) for _ in range(num_threads)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return raised


def saved_with_settings(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose file asks for truncation and padding, as some do."""
    tokenizer = tiny_tokenizer(kind=kind)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    return tokenizer


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_threads_share_a_tokenizer_from_its_first_call_on(kind: str) -> None:
    rows = [Row({"text": " the film was very dull" * (1 + 4 * (i % 5)), "label": "n"}, f"row {i}") for i in range(16)]
    task = Task("{prompt:2}review: {text}{prompt:1}\nsentiment:", verbalizer=VERBALIZER, max_length=60)
    expected = Coder(task, tiny_tokenizer(kind=kind)).encode(rows)
    assert any(each.was_cut for each in expected)
    for _ in range(5):
        tokenizer = saved_with_settings(kind)

        def work(tokenizer: PreTrainedTokenizerFast = tokenizer) -> None:
            for _ in range(3):
                examples = Coder(task, tokenizer).encode(rows)
                assert examples == expected
                assert "the film was" in tokenizer.decode([i for i in examples[0].ids if i >= 0])

        assert run_together(work) == []


def test_no_call_changes_a_tokenizer_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, states = saved_with_settings("byte-fallback"), set[str]()
    encode = tokenizer._encode_plus

    def watched(*arguments: Any, **options: Any) -> Any:
        found = encode(*arguments, **options)
        states.add(tokenizer.backend_tokenizer.to_str())
        return found

    monkeypatch.setattr(tokenizer, "_encode_plus", watched)
    task = Task("{prompt:2}a {text}{prompt:1} film", chat_template=True, verbalizer=VERBALIZER, max_length=30)
    (example,) = Coder(task, tokenizer).encode([Row({"text": "good " * 20, "label": "n"}, "row")])
    assert example.was_cut
    assert len(states) == 1
