"""Streams, stop strings, and which way of generating is taken where."""

import threading

import pytest
import torch
from families import FAMILIES, tiny_backbone, tiny_model
from tokenizers import Tokenizer, decoders, models
from transformers import GenerationConfig, PreTrainedTokenizerFast

from ptuning.data.task import Task
from ptuning.errors import ModelError, PromptError
from ptuning.inference import generation, streaming
from ptuning.inference.generation import writing_options
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.inference.row_text import RowText
from ptuning.inference.streaming import Piece
from ptuning.model import Backbone
from ptuning.prompts.soft_prompt import SoftPrompt

ROWS = [{"text": text} for text in ("the film was good", "bad", "a very dull plot in the capital", "", "bright")]


def prompted(backbone, num_virtual_tokens=4, **options):
    drawn = torch.randn(num_virtual_tokens, backbone.width, generator=torch.Generator().manual_seed(0))
    task = Task(f"{{prompt:{num_virtual_tokens}}}{{text}} is", "{answer}")
    prompt = SoftPrompt(drawn * backbone.vocabulary_VH.std(), task, backbone.name, backbone.fingerprint)
    return PromptedLM(backbone, {"p": prompt}, **options)


@pytest.fixture(scope="module")
def lm(backbone):
    return prompted(backbone, batch_size=2)


@pytest.fixture
def caches(monkeypatch):
    """For each call of the model's generate, how many columns had been run before it."""
    lengths = []
    generate = generation.CausalBackbone.generate

    def noted(self, *arguments, **settings):
        cache = settings.get("past_key_values")
        lengths.append(0 if cache is None else cache.get_seq_length())
        return generate(self, *arguments, **settings)

    monkeypatch.setattr(generation.CausalBackbone, "generate", noted)
    return lengths


def told(pieces):
    texts = [""] * len(ROWS)
    for piece in pieces:
        assert isinstance(piece, Piece)
        assert piece.text
        texts[piece.row] += piece.text
    return texts


@pytest.mark.parametrize("options", [{}, {"stop_strings": ["i", "xy"]}, {"do_sample": True, "top_k": 20}])
def test_pieces_joined_are_the_answers(lm, options):
    torch.manual_seed(0)
    expected = lm.generate(ROWS, max_new_tokens=12, **options)
    torch.manual_seed(0)
    assert told(lm.generate(ROWS, max_new_tokens=12, stream=True, **options)) == expected


def test_text_comes_before_the_end(lm, monkeypatch):
    finished = threading.Event()
    write = streaming.write

    def slow_write(*arguments, **listening):
        ids_BN = write(*arguments, **listening)
        finished.set()
        return ids_BN

    monkeypatch.setattr(streaming, "write", slow_write)
    pieces = lm.generate(ROWS[:1], max_new_tokens=60, stream=True)
    next(pieces)
    assert not finished.is_set()
    list(pieces)
    assert finished.is_set()


def test_nobody_listening_ends_the_writing(lm, monkeypatch):
    num_steps = []
    put = streaming._RowStreamer.put
    monkeypatch.setattr(streaming._RowStreamer, "put", lambda *a: num_steps.append(1) or put(*a))
    num_threads = threading.active_count()
    pieces = lm.generate(ROWS, max_new_tokens=2000, stream=True)
    next(pieces)
    pieces.close()
    assert len(num_steps) < 1000
    assert threading.active_count() == num_threads


def test_what_goes_wrong_while_streaming_is_raised_to_the_reader(lm, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a broken cable")

    monkeypatch.setattr(streaming, "write", fail)
    with pytest.raises(RuntimeError, match="a broken cable"):
        list(lm.generate(ROWS, stream=True))


def test_mistakes_are_told_before_the_first_piece_is_asked_for(lm):
    with pytest.raises(PromptError, match=r"stream=True. with beams .*; expected tokens that come one by one"):
        lm.generate(ROWS, stream=True, num_beams=2)
    with pytest.raises(PromptError, match="prompt='x'"):
        lm.generate(ROWS, "x", stream=True)


def test_stop_string_ends_an_answer_and_is_left_out(lm):
    free = lm.generate(ROWS, max_new_tokens=20)
    stop = free[0][2:4]
    stopped = lm.generate(ROWS, max_new_tokens=20, stop_strings=[stop])
    assert stopped == [text.partition(stop)[0] for text in free]
    assert stopped[0] == free[0].partition(stop)[0] != free[0]


def row_text(backbone, stop_strings=()):
    return RowText(backbone.tokenizer, backbone.end_ids, stop_strings)


def test_half_a_character_and_the_beginning_of_a_stop_string_are_held_back(backbone):
    ids = backbone.tokenizer("é<<>", add_special_tokens=False).input_ids
    assert len(ids) == 5  # the first letter is two bytes
    row = row_text(backbone, stop_strings=["<>"])
    assert [row.add([token]) for token in ids] == ["", "é", "", "<", ""]
    assert (row.has_ended, row.finish()) == (True, "")
    row = row_text(backbone, stop_strings=["<>"])
    assert "".join(row.add([token]) for token in ids[:4]) + row.finish() == "é<<"


def test_nothing_is_told_behind_the_end_of_text(backbone):
    row = row_text(backbone)
    assert row.add([300, 1, 301]) == backbone.tokenizer.decode([300])
    assert row.has_ended
    assert row.add([302]) == ""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0; expected an integer above 0"),
        ({"stop_strings": "x"}, "stop_strings='x'; expected a list of texts"),
        ({"stop_strings": [""]}, r"stop_strings=\[''\]; expected a list of texts, none of them empty"),
        ({"use_cache": False}, r"generate\(use_cache=…\); expected options that leave the cache to ptuning"),
        ({"past_key_values": None}, r"generate\(past_key_values=…\); expected options that leave the cache"),
    ],
)
def test_options_that_cannot_be_are_refused(lm, options, told):
    with pytest.raises(PromptError, match=told):
        lm.generate(ROWS, **options)


def test_generation_goes_on_from_what_has_been_read(lm, caches, monkeypatch):
    lm.generate(ROWS, max_new_tokens=2)
    assert caches == [5, 11, 8]  # one row: virtual tokens and begin-of-text; several: all but the last column
    caches.clear()
    monkeypatch.setattr(generation, "can_pack", lambda *_: False)
    lm.generate(ROWS, max_new_tokens=2)
    assert caches == [5, 5, 5]  # virtual tokens and begin-of-text


def test_options_that_need_a_cache_of_their_own_get_whole_rows(lm, caches):
    expected = lm.generate(ROWS[:1], max_new_tokens=8)
    for option in ({"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}):
        assert lm.generate(ROWS[:1], max_new_tokens=8, **option) == expected
    assert caches == [5, 0, 0]


def test_padding_never_stands_between_prefix_and_text_of_a_windowed_model(caches):
    windowed = prompted(tiny_backbone("mistral"), batch_size=32)
    windowed.generate(ROWS, max_new_tokens=2)  # of unequal lengths
    windowed.generate(ROWS[:1] * 2, max_new_tokens=2)
    wide = prompted(tiny_backbone("mistral", sliding_window=200), batch_size=32)
    wide.generate(ROWS, max_new_tokens=2)
    assert caches[:2] == [0, 5]
    assert caches[2] > 5


def test_repetition_penalty_sees_the_rows_own_words_and_nothing_else(backbone):
    """The same whatever stands beside a row, and whichever way it is generated."""
    options = {"max_new_tokens": 8, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
    together = prompted(backbone, batch_size=32)
    alone = [together.generate([row], **options)[0] for row in ROWS]
    assert together.generate(ROWS, **options) == alone
    assert together.generate(ROWS, cache_implementation="static", **options) == alone
    assert alone != [together.generate([row], max_new_tokens=8)[0] for row in ROWS]


@pytest.fixture
def rwkv(monkeypatch):
    """A model that reads padding as text."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 48}
    monkeypatch.setitem(FAMILIES, "rwkv", {**shape, "context_length": 96})
    return tiny_backbone("rwkv")


def test_rows_of_a_model_that_reads_padding_are_continued_one_by_one(rwkv, backbone):
    assert backbone.ignores_left_padding
    assert not rwkv.ignores_left_padding
    lm = prompted(rwkv, batch_size=32)
    alone = [lm.generate([row], max_new_tokens=5)[0] for row in ROWS]
    assert lm.generate(ROWS, max_new_tokens=5) == alone


def test_model_that_can_only_begin_from_ids_is_told(monkeypatch):
    shape = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
    monkeypatch.setitem(FAMILIES, "falcon_h1", {**FAMILIES["qwen3"], **shape, "mamba_chunk_size": 8})
    lm = prompted(tiny_backbone("falcon_h1"))
    with pytest.raises(ModelError, match=r"lets FalconH1ForCausalLM start from ids only.*Use classify or log_probs"):
        lm.generate(ROWS)
    assert len(lm.log_probs([{**row, "answer": "x"} for row in ROWS])) == len(ROWS)


def test_settings_are_greedy_and_end_at_the_models_ends(backbone):
    settings = writing_options(backbone, 5, (), {"eos_token_id": 7})
    assert (settings.options["do_sample"], settings.options["max_new_tokens"]) == (False, 5)
    assert (settings.ends, settings.stop_strings, settings.num_beams) == ({7}, (), 1)
    assert writing_options(backbone, 5, ["x"], {}).ends == set(backbone.end_ids)


def test_tokenizer_that_falls_back_to_bytes_streams_whole_characters():
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "a", "b"]
    fallback = Tokenizer(models.BPE(vocab={each: i for i, each in enumerate(tokens)}, merges=[], byte_fallback=True))
    fallback.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fallback, eos_token="</s>")
    text = "a叫é😀b"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) > len(text)
    row = row_text(Backbone.of(tiny_model("llama")[0], tokenizer, "fallback"))
    pieces = [row.add([token]) for token in ids]
    assert "".join(pieces) + row.finish() == text
    assert "\ufffd" not in "".join(pieces)


def test_stop_string_that_begins_in_the_question_stops_nothing(backbone):
    lm = prompted(backbone)  # its template ends in "is"
    free = lm.generate(ROWS, max_new_tokens=8)
    stops = [f"s{text[0]}" for text in free if text]
    assert lm.generate(ROWS, max_new_tokens=8, stop_strings=stops) == [_before(text, stops) for text in free]


def _before(text, stops):
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def test_stop_string_ends_the_writing_and_not_only_the_text(lm, monkeypatch):
    num_steps = []
    put = streaming._RowStreamer.put
    monkeypatch.setattr(streaming._RowStreamer, "put", lambda *a: num_steps.append(1) or put(*a))
    free = lm.generate(ROWS[:1], max_new_tokens=40)[0]
    list(lm.generate(ROWS[:1], max_new_tokens=40, stop_strings=[free[:2]], stream=True))
    assert len(num_steps) < 20


def test_words_that_options_look_at_are_the_rows_own(any_backbone):
    """A one-word row without a begin-of-text token: what fills the columns beside a longer row must repeat no word."""
    lm = prompted(any_backbone, batch_size=32)
    any_backbone.tokenizer  # noqa: B018
    options = {"max_new_tokens": 6, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3}
    alone = [lm.generate([row], **options)[0] for row in ROWS]
    assert lm.generate(ROWS, **options) == alone


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 96}),
        (
            "gpt_neo",
            {
                "hidden_size": 32,
                "num_layers": 2,
                "num_heads": 4,
                "window_size": 6,
                "max_position_embeddings": 96,
                "attention_types": [[["global", "local"], 1]],
            },
        ),
    ],
)
def test_models_that_count_padding_generate_whole_rows(family, settings, monkeypatch, caches):
    monkeypatch.setitem(FAMILIES, family, settings)
    lm = prompted(tiny_backbone(family), batch_size=32)
    alone = [lm.generate([row], max_new_tokens=5)[0] for row in ROWS]
    assert caches == [5] * len(ROWS)  # nothing stands between prefix and text
    assert lm.generate(ROWS, max_new_tokens=5) == alone
    assert caches[-1] == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"foo": 1}, r"generate \(.*foo.*\); expected options that transformers' generate accepts"),
        ({"do_sample": True, "temperature": -1.0}, r"generate \(.*temperature.*\); expected options"),
        ({"cache_implementation": "nope"}, r"generate \(.*nope.*\); expected options"),
        ({"attention_mask": None}, r"generate\(attention_mask=…\); expected rows, from which ptuning makes the inputs"),
    ],
)
def test_options_that_transformers_refuses_are_told_as_mistakes(lm, options, told):
    with pytest.raises(PromptError, match=told):
        lm.generate(ROWS, **options)


def test_what_the_models_own_configuration_sets_is_heeded():
    own = tiny_backbone()
    lm = prompted(own, batch_size=32)
    beams = lm.generate(ROWS, max_new_tokens=5, num_beams=3)
    own.model.generation_config.num_beams = 3
    own.model.generation_config.num_return_sequences = 2
    assert lm.generate(ROWS, max_new_tokens=5) == beams
    with pytest.raises(PromptError, match="expected tokens that come one by one"):
        lm.generate(ROWS, stream=True)
    with pytest.raises(PromptError, match="a conversation with beams"):
        lm.conversation().send("a")


def test_assisted_generation_is_not_streamed(lm):
    with pytest.raises(PromptError, match="with beams or assisted generation"):
        lm.generate(ROWS[:1], stream=True, prompt_lookup_num_tokens=2)


def test_beams_count_against_the_tokens_of_a_batch(backbone, monkeypatch):
    lm, sizes = prompted(backbone, batch_size=32, max_batch_tokens=200), []
    generate = type(backbone).generate

    def noted(self, embeddings_BTH, *arguments, **settings):
        sizes.append(len(embeddings_BTH) * (embeddings_BTH.shape[1] + 5))
        return generate(self, embeddings_BTH, *arguments, **settings)

    monkeypatch.setattr(type(backbone), "generate", noted)
    lm.generate(ROWS * 3, max_new_tokens=5, num_beams=4)
    assert 4 * max(sizes) <= 200


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3_text", "deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_rows_read_end_to_end_are_written_on_as_padded_ones_are(family, options, monkeypatch):
    backbone = (
        tiny_backbone(family, sliding_window=200) if family in ("gemma3_text", "gpt_oss") else tiny_backbone(family)
    )
    lm = prompted(backbone)
    lm.prompts["long"] = prompted(backbone, 9).prompts["p"]
    rows = [
        {"text": text} for text in ("the film was very dull and very bad", "bad", "good plot", "a bright film", "a")
    ]
    names = ["p", "long", "p", "p", "long"]
    asked = {"prompt": names, "max_new_tokens": 6, **options}
    read = []
    prefill = generation.prefilled
    monkeypatch.setattr(generation, "prefilled", lambda *each: read.append(each) or prefill(*each))
    end_to_end = lm.generate(rows, **asked)
    assert len(read) == 1
    monkeypatch.setattr(generation, "can_pack", lambda *_: False)
    assert lm.generate(rows, **asked) == end_to_end
    assert len(read) == 1


def test_nothing_of_a_stop_string_is_told_before_half_of_one_of_its_characters(backbone):
    tokenizer = backbone.tokenizer
    ids = [i for text in ("x", "n") for i in tokenizer(text, add_special_tokens=False).input_ids]
    e_acute = tokenizer("é", add_special_tokens=False).input_ids
    assert len(e_acute) == 2  # one token per byte
    row = RowText(tokenizer, backbone.end_ids, ["né", "ab"])
    pieces = [row.add([i]) for i in [*ids, *e_acute]]
    assert "".join(pieces) + row.finish() == "x"
    assert pieces[:3] == ["x", "", ""]


def test_a_given_generation_config_holds(backbone):
    lm = prompted(backbone)
    config = GenerationConfig(do_sample=True, temperature=50.0, max_new_tokens=3, eos_token_id=-1)
    settings = writing_options(backbone, None, (), {"generation_config": config})
    assert settings.max_new_tokens == 3
    assert settings.ends == frozenset([-1])
    written = {tuple(lm.generate(ROWS[:1], generation_config=config)) for seed in range(5) if torch.manual_seed(seed)}
    assert len(written) > 1  # sampled
    plain = writing_options(backbone, None, (), {})
    assert (plain.max_new_tokens, plain.options["do_sample"]) == (50, False)
    assert plain.ends == frozenset(backbone.end_ids)


def test_an_option_wins_over_a_given_generation_config(backbone):
    config = GenerationConfig(do_sample=True, max_new_tokens=3, num_beams=2)
    settings = writing_options(backbone, 7, (), {"generation_config": config, "do_sample": False, "num_beams": 1})
    assert (settings.max_new_tokens, settings.options["do_sample"], settings.num_beams) == (7, False, 1)
