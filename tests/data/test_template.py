"""Templates, chat templates, cutting and verbalizers."""

import string
import sys
from types import SimpleNamespace

import pytest
from families import tiny_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ptuning.data.coder import Encoded, TemplateEncoder
from ptuning.data.task import Task, Verbalizer
from ptuning.data.template import Field, Literal, Slot, Template
from ptuning.data.tokenizer import text_ids
from ptuning.errors import ConfigError, DataError

TOKENIZER = tiny_tokenizer()
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40) | st.text("{}[]!:\ue000\ue001 \n a0", max_size=20)


def ids_of(text: str) -> list[int]:
    return text_ids(TOKENIZER, [text])[0]


def encode(template: str, row: dict[str, str], room: int = 10_000, chat: bool = False) -> Encoded:
    encoder = TemplateEncoder(Template.parse(template), TOKENIZER, chat)
    return encoder.encode([row], [room], lambda i: f"rows.csv line {i + 2}")[0]


# Parsing


def test_a_template_is_parsed_into_slots_fields_and_literals() -> None:
    template = Template.parse("{prompt:20}Review: {text}\nSentiment:")
    assert template.parts == (Slot(20), Literal("Review: "), Field("text"), Literal("\nSentiment:"))
    assert template.num_virtual_tokens == 20
    assert template.field_names == ("text",)


def test_doubled_braces_are_literal_braces() -> None:
    template = Template.parse("{{prompt:3}} {{{text}}} {prompt:2}")
    assert "".join(map(str, template.fill({"text": "a"}))) == "{prompt:3} {a} 2"
    assert template.num_virtual_tokens == 2
    assert template.field_names == ("text",)


def test_several_slots_may_stand_between_fields() -> None:
    template = Template.parse("{prompt:3}{subject}{prompt:1}{prompt:2} is {subject}{object}")
    assert template.num_virtual_tokens == 6
    assert template.field_names == ("subject", "object")
    assert template.fill({"subject": "Paris", "object": "big"}) == [3, "Paris", 1, 2, " is Parisbig"]


@pytest.mark.parametrize(
    ("text", "leads"),
    [
        ("{prompt:3}{text}", True),
        ("{prompt:3}{prompt:2}a", True),
        ("{prompt:3}", True),
        ("{text}{prompt:3}", False),
        ("{prompt:3}a{prompt:2}", False),
        ("a {text}", False),
    ],
)
def test_a_template_leads_where_all_slots_stand_first(text: str, leads: bool) -> None:
    assert Template.parse(text).is_leading is leads


@pytest.mark.parametrize(
    "text",
    ["{prompt:20}Review: {text}\nSentiment:", "{{}}{{{a}}}{prompt:1}{{prompt:2}}", "", "{a}{b}{prompt:7}", "é\t"],
)
def test_the_text_of_a_template_is_what_was_parsed(text: str) -> None:
    assert Template.parse(text).text == text


PARTS = st.lists(
    TEXTS.filter(bool).map(Literal)
    | st.text(string.ascii_letters, min_size=1).filter(lambda name: name != "prompt").map(Field)
    | st.integers(1, 99).map(Slot),
    max_size=6,
)


@given(PARTS)
@settings(deadline=None)
def test_any_template_survives_being_written_and_parsed(parts: list[Literal | Field | Slot]) -> None:
    written = Template(tuple(parts)).text
    again = Template.parse(written)
    row = {name: f"<{name}>" for name in again.field_names}
    assert again.text == written
    assert again.fill(row) == Template(tuple(parts)).fill(row)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{prompt:0}{text}", r"slot {prompt:0} in template .*; expected {prompt:N} with N at least 1"),
        ("{prompt}{text}", r"slot {prompt:} in template"),
        ("{prompt:-1}", r"slot {prompt:-1} in"),
        ("{prompt:many}", r"slot {prompt:many} in"),
        ("{prompt:3.5}", r"slot {prompt:3.5} in"),
        ("{prompt:²}", r"slot {prompt:²} in"),
        ("{prompt:3}{x:3}", r"placeholder {x} in template '{prompt:3}{x:3}'; expected {column} or {prompt:N}"),
        ("{x!r}", r"placeholder {x} in"),
        ("{prompt!r:3}", r"placeholder {prompt} in"),
        ("{}", r"placeholder {} in .*Write literal braces as {{ and }}"),
        ("{ }", r"placeholder { } in"),
        ("{prompt:3}{text", r"template '{prompt:3}{text' \(expected '}'.*Write literal braces as {{ and }}"),
        ("{prompt:3}text}", r"template .* \(Single '}' encountered"),
        ("{prompt:{n}}", r"slot {prompt:{n}} in"),
    ],
)
def test_a_malformed_template_is_refused(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Template.parse(text)


def test_a_template_without_a_slot_is_refused_where_one_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"template '{{a}}{text}' has no prompt slot; .*Put {prompt:20} in front"):
        Template.parse("{{a}}{text}").require_slot()
    template = Template.parse("{text}{prompt:1}")
    assert template.require_slot() is template


def test_the_baseline_has_the_same_words_and_no_slots() -> None:
    task = Task("{prompt:3}a {text}{prompt:2}{{b}}", "{label}", {"x": " x", "y": " y"}, True, 99)
    bare = task.without_prompt()
    assert bare == Task("a {text}{{b}}", "{label}", {"x": " x", "y": " y"}, True, 99)
    assert (task.num_virtual_tokens, bare.num_virtual_tokens) == (5, 0)


# Filling


@given(TEXTS)
@example("{text}{prompt:3}{{")
@example("\ue000content\ue001")
def test_a_rows_text_is_put_in_place_unchanged(text: str) -> None:
    filled = Template.parse("{prompt:2}<{text}>{prompt:1}").fill({"text": text})
    assert filled == [2, f"<{text}>", 1]


def test_text_joined_across_parts_is_tokenized_as_one() -> None:
    whole = encode("{prompt:1}the{text}", {"text": " film"}).ids
    assert whole == [-1, 0, *ids_of("the film")]
    assert encode("{text}od", {"text": " go"}).ids == [0, *ids_of(" good")]
    assert ids_of(" good") != ids_of(" go") + ids_of("od")


def test_virtual_tokens_are_numbered_across_slots() -> None:
    ids = encode("{prompt:3}{text}{prompt:2} is{prompt:1}", {"text": " film"}).ids
    assert ids == [-1, -2, -3, 0, *ids_of(" film"), -4, -5, *ids_of(" is"), -6]


def test_begin_of_text_stands_after_leading_slots_and_before_the_first_text() -> None:
    assert encode("{prompt:2}{text}", {"text": " film"}).ids == [-1, -2, 0, *ids_of(" film")]
    assert encode("{text}{prompt:2}{text}", {"text": " film"}).ids == [0, *ids_of(" film"), -1, -2, *ids_of(" film")]
    assert encode("{prompt:2}", {}).ids == [-1, -2, 0]
    assert encode("{prompt:1}{text}", {"text": ""}).ids == [-1, 0]


def test_a_tokenizer_without_begin_of_text_adds_none() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    encoder = TemplateEncoder(Template.parse("{prompt:1}{text}"), tokenizer)
    assert encoder.encode([{"text": " film"}], [99], str)[0].ids == [-1, *ids_of(" film")]


def test_all_rows_are_encoded_in_their_order() -> None:
    encoder = TemplateEncoder(Template.parse("{prompt:1}{a}{prompt:1}{b}"), TOKENIZER)
    rows = [{"a": f" good {i}", "b": " film" * i} for i in range(5)]
    together = encoder.encode(rows, [99] * 5, str)
    assert together == [encoder.encode([row], [99], str)[0] for row in rows]
    assert len({tuple(each.ids) for each in together}) == 5


# Chat templates


def test_leading_slots_stay_in_front_of_the_chat_template() -> None:
    encoded = encode("{prompt:2}{prompt:1}review {text}{prompt:1}!", {"text": "good"}, chat=True)
    before, after = ids_of("<s>user: review good"), ids_of("!</s><s>assistant:")
    assert encoded.ids == [-1, -2, -3, *before, -4, *after]


def test_the_chat_templates_own_begin_of_text_is_the_only_one() -> None:
    ids = encode("{prompt:1}{text}", {"text": "good"}, chat=True).ids
    assert ids == [-1, *ids_of("<s>user: good</s><s>assistant:")]
    assert ids.count(0) == 2


@pytest.mark.parametrize("text", ["{text} {prompt:3} {{", "\ue000content\ue001", "\ue000", "{}"])
def test_braces_and_sentinels_in_a_chats_text_are_only_text(text: str) -> None:
    ids = encode("{prompt:1}{text}", {"text": text}, chat=True).ids
    assert TOKENIZER.decode(ids[1:]) == f"<s>user: {text}</s><s>assistant:"


def test_braces_in_a_chat_template_are_only_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ '{text}' }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    chat = Template.parse("{prompt:1}{text}").in_chat(tokenizer)
    assert chat.fill({"text": "a"}) == [1, "{text}a"]


def test_a_chat_without_a_chat_template_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    match = "chat_template: true with a tokenizer that has no chat template; .*Set data.chat_template to false"
    with pytest.raises(ConfigError, match=match):
        TemplateEncoder(Template.parse("{prompt:1}{text}"), tokenizer, chat=True)


# Cutting


def test_a_row_that_fits_exactly_is_not_cut() -> None:
    row = {"text": " good film plot"}
    whole = encode("{prompt:3}{text}:", row)
    assert len(whole.ids) == 3 + 1 + 3 + 1
    assert encode("{prompt:3}{text}:", row, room=8) == whole == Encoded(whole.ids, was_cut=False)
    assert encode("{prompt:3}{text}:", row, room=7) == Encoded(
        encode("{prompt:3}{text}:", {"text": " good film"}).ids, was_cut=True
    )


def test_only_the_longest_field_is_cut_and_nothing_else() -> None:
    template = "{prompt:2}{title}: {body}{prompt:1} ({note})"
    row = {"title": " good film", "body": " very dull" * 9, "note": "plot"}
    whole, cut = encode(template, row), encode(template, row, room=30)
    assert len(whole.ids) > len(cut.ids) == 30
    before, after = ids_of(" good film: "), [-3, *ids_of(" (plot)")]
    assert cut.ids[: 3 + len(before)] == [-1, -2, 0, *before]
    assert cut.ids[-len(after) :] == after
    assert cut.was_cut


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_chosen_field_is_cut_from_a_chosen_side(side: str) -> None:
    template = Template.parse("{title}: {body}")
    tokenizer, row = tiny_tokenizer(), {"title": "the good film", "body": "a " * 30 + "b"}
    encoder = TemplateEncoder(template, tokenizer, cut_column="title", cut_side=side)
    whole = TemplateEncoder(template, tokenizer).encode([row], [999], str)[0].ids
    (cut,) = encoder.encode([row], [len(whole) - 2], str)
    text = tokenizer.decode(cut.ids)
    assert cut.was_cut
    assert text.endswith(row["body"])
    title = text.removeprefix("<s>").strip().partition(":")[0].strip()
    kept = row["title"].startswith(title) if side == "right" else row["title"].endswith(title)
    assert kept
    assert 0 < len(title) < len(row["title"])


def test_what_is_cut_must_be_there() -> None:
    with pytest.raises(ConfigError, match=r"cut_column 'body'; expected a column of the template: text"):
        Task("{prompt:2}{text}", cut_column="body")
    with pytest.raises(ConfigError, match=r"cut_side 'middle'; expected right or left"):
        Task("{prompt:2}{text}", cut_side="middle")


def test_the_longest_field_is_the_one_with_the_most_tokens() -> None:
    row = {"a": "\u4e2d\u6587\u4e2d\u6587", "b": " film film film"}
    cut = encode("{prompt:2}{a}{prompt:1}{b}", row, room=2 + 1 + 6 + 1 + 3)
    assert cut.ids == [-1, -2, 0, *ids_of("\u4e2d\u6587"), -3, *ids_of(" film film film")]


def test_each_row_has_its_own_room() -> None:
    encoder = TemplateEncoder(Template.parse("{prompt:1}{text}"), TOKENIZER)
    encoded = encoder.encode([{"text": " film" * 9}] * 3, [11, 10, 3], str)
    assert [len(each.ids) for each in encoded] == [11, 10, 3]
    assert [each.was_cut for each in encoded] == [False, True, True]


def test_a_text_may_be_cut_to_nothing() -> None:
    assert encode("{prompt:3}{text}:", {"text": " film"}, room=5) == Encoded(
        [-1, -2, -3, 0, *ids_of(":")], was_cut=True
    )


@pytest.mark.parametrize("template", ["{prompt:3}{text}:", "{prompt:3}:"])
def test_a_row_that_cannot_fit_is_named(template: str) -> None:
    match = r"rows.csv line 2 needs 5 tokens before any of its 'text'; expected at most 4: .*raise data.max_length"
    with pytest.raises(DataError, match=match):
        encode(template, {"text": " film"}, room=4)


@given(
    st.text(st.sampled_from(" godflmv\u00e9\u4e2d{}\U0001f600"), min_size=4, max_size=60) | TEXTS,
    st.text("ab ", max_size=3),
    st.integers(9, 20),
    st.booleans(),
)
@settings(deadline=None)
def test_a_cut_text_is_the_longest_beginning_that_fits(text: str, other: str, room: int, swapped: bool) -> None:
    fields = ("{b}", "{a}") if swapped else ("{a}", "{b}")
    template = "{prompt:2}" + " ".join(fields) + "{prompt:1}:"
    row = {"a": text, "b": other}
    cut_name = max(Template.parse(template).field_names, key=lambda name: len(ids_of(row[name])))
    encoded = encode(template, row, room)
    assert len(encoded.ids) <= room
    kept = [encode(template, {**row, cut_name: row[cut_name][:length]}).ids for length in range(len(row[cut_name]) + 1)]
    places = [length for length, ids in enumerate(kept) if ids == encoded.ids]
    assert places, "what is left is no beginning of the field"
    assert encoded.was_cut is (len(kept[-1]) > room)
    assert places[-1] == len(kept) - 1 or len(kept[places[-1] + 1]) > room


# Verbalizers and tasks


def test_labels_are_told_by_texts_of_one_token_or_several() -> None:
    verbalizer = Verbalizer({"good": " positive", "bad": " not good"})
    assert verbalizer.labels == ("good", "bad")
    assert verbalizer.token_ids(TOKENIZER) == [ids_of(" positive"), ids_of(" not good")]
    assert [len(ids) for ids in verbalizer.token_ids(TOKENIZER)] == [1, 4]


@pytest.mark.parametrize("texts", [{"x": " good", "y": " good film"}, {"x": " good film", "y": " good"}])
def test_a_label_text_that_begins_another_is_refused(texts: dict[str, str]) -> None:
    match = "verbalizer text ' good' of '[xy]' begins ' good film' of '[xy]'; .*the shorter would always win"
    with pytest.raises(ConfigError, match=match):
        Verbalizer(texts).token_ids(TOKENIZER)


def test_two_labels_with_one_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="' good' of 'x' begins ' good' of 'y'"):
        Verbalizer({"x": " good", "y": " good"}).token_ids(TOKENIZER)


@pytest.mark.parametrize(
    ("answer", "verbalizer", "match"),
    [
        (
            "{label}{prompt:2}",
            None,
            r"answer '{label}{prompt:2}' has a prompt slot; expected slots in the template only",
        ),
        (
            "{label}{kind}",
            {"x": " a", "y": " b"},
            r"answer '{label}{kind}' with a verbalizer; expected one column alone",
        ),
        (" {label}", {"x": " a", "y": " b"}, r"answer ' {label}' with a verbalizer; expected one column alone"),
        ("label", {"x": " a", "y": " b"}, "answer 'label' with a verbalizer; expected one column alone"),
        ("{label}", {"x": " a"}, r"a verbalizer with labels \['x'\]; expected two labels or more"),
        ("{label}", {}, r"a verbalizer with labels \[\]; expected two labels or more"),
        ("{label}", {"x": " a", "y": ""}, "verbalizer label 'y' with no text; expected a text for every label"),
        ("{label", None, "template '{label'"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused(answer: str, verbalizer: dict[str, str] | None, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Task("{prompt:2}{text}", answer, verbalizer)


def test_a_task_names_the_columns_it_needs() -> None:
    generation = Task("{prompt:2}{a}{b}", "{c} in {a}")
    assert generation.columns == ("a", "b", "c")
    assert not generation.is_classification
    classification = Task("{prompt:2}{a}", "{kind}", {"x": " a", "y": " b"})
    assert classification.columns == ("a", "kind")
    assert classification.is_classification
    assert classification.label_column == "kind"


# What a row may not do


@pytest.mark.parametrize("word", ["<s>", "</s>", "<pad>"])
@pytest.mark.parametrize("chat", [False, True])
def test_a_rows_text_cannot_write_a_special_token(word: str, chat: bool) -> None:
    plain, spelled = encode("{text} is", {"text": "a"}, chat=chat), encode("{text} is", {"text": f"a{word}"}, chat=chat)
    special = TOKENIZER.all_special_ids
    assert ids_of(word) == [TOKENIZER.convert_tokens_to_ids(word)]
    assert sum(i in special for i in spelled.ids) == sum(i in special for i in plain.ids)
    assert f"{word[0]} {word[1:]}" in TOKENIZER.decode(spelled.ids)


def test_special_tokens_in_the_template_itself_are_kept() -> None:
    assert encode("{text}</s>", {"text": "a"}).ids[-1] == TOKENIZER.eos_token_id


@pytest.mark.parametrize(
    "chat_template",
    [
        "{{ raise_exception('a system turn must come first') }}",
        "{% for m in messages %}no content{% endfor %}",
        "{% if %}",
    ],
)
def test_a_chat_template_that_frames_no_turn_is_told(chat_template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat_template
    with pytest.raises(ConfigError, match=r"chat template that cannot frame .* Set data\.chat_template to false"):
        TemplateEncoder(Template.parse("{prompt:2}{text}"), tokenizer, chat=True)


def test_slots_can_be_filled_with_texts():
    template = Template.parse("{prompt:3}a {text}{prompt:2} b {{c}}")
    assert template.slot_sizes == (3, 2)
    filled = template.with_texts(["one {brace} ", " two"])
    assert filled.text == "one {{brace}} a {text} two b {{c}}"
    assert filled.fill({"text": "x"}) == ["one {brace} a x two b {c}"]
    assert filled.num_virtual_tokens == 0
    task = Task("{prompt:3}a {text}{prompt:2}", verbalizer={"n": " n", "p": " p"}).with_texts(["x", "y"])
    assert task.template == "xa {text}y"


@pytest.mark.parametrize("side", ["right", "left"])
@given(text=st.text("ab c\n1é", min_size=30, max_size=2000), room=st.integers(8, 14))
def test_of_a_long_text_only_as_much_is_tokenized_as_decides(side: str, text: str, room: int) -> None:
    encoder = TemplateEncoder(Template.parse("{prompt:2}: {text}!"), TOKENIZER, cut_side=side)
    (found,) = encoder.encode([{"text": text}], [room], str)
    encoder._begun = lambda row, most: row
    assert encoder.encode([{"text": text}], [room], str) == [found]


def test_a_text_of_megabytes_is_cut_at_once() -> None:
    encoder = TemplateEncoder(Template.parse("{prompt:2}{text}"), TOKENIZER)
    lengths, ids = [], encoder._running.ids
    encoder._running = SimpleNamespace(ids=lambda each: [lengths.append(len(own.text)) for own in each] and ids(each))
    (found,) = encoder.encode([{"text": "a good film. " * 400_000}], [64], str)
    assert found.was_cut
    assert len(found.ids) == 64
    assert max(lengths) <= 128 * 8


@pytest.mark.parametrize(("num_words", "room"), [(118, 120), (121, 120), (521, 522), (522, 522), (990, 1000)])
def test_a_text_of_long_words_is_cut_no_sooner(num_words: int, room: int) -> None:
    row = {"text": " positive" * num_words}
    encoder = TemplateEncoder(Template.parse("{text}"), TOKENIZER)
    whole = len(encoder.encode([row], [sys.maxsize], str)[0].ids)
    (found,) = encoder.encode([row], [room], str)
    assert found.was_cut == (whole > room)
    assert len(found.ids) == min(whole, room)
