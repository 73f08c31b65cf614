"""Merged models: plain transformers on plain text must answer as ptuning does with the prompt."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import tiny_model
from tokenizers import AddedToken
from torch import Tensor

from ptuning.data.task import Task
from ptuning.errors import FileError, ModelError, PromptError
from ptuning.export.merged_model import merge
from ptuning.export.merged_prompts import MERGED_FILE, MergedPrompts
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.model import Backbone
from ptuning.prompts import encoders
from ptuning.prompts.soft_prompt import SoftPrompt

FAMILIES = ("llama", "gpt2", "gemma3_text", "qwen3", "opt")
VERBALIZER = {"negative": " negative", "positive": " positive"}
TASK = Task("{prompt:3}review: {text} and{prompt:2} the sentiment is", verbalizer=VERBALIZER)
WRITTEN = Task("{prompt:4}the film {text} was")
CHAT = Task("{prompt:3}review: {text}", verbalizer=VERBALIZER, chat_template=True)
ROWS = [{"text": text} for text in ("a good film", "the plot was very dull", "", "1, 2 é (\n")]


def saved(path: Path, family: str = "llama", reserved: int = 0, **options: Any) -> str:
    """A tiny model's directory; `reserved` of its tokens are held in reserve."""
    _, tokenizer = tiny_model(family, **options)
    if reserved:
        flags = {"special": True, "normalized": False}
        tokens = [AddedToken(f"<|reserved_special_token_{i}|>", **flags) for i in range(reserved)]
        tokenizer.add_tokens(tokens, special_tokens=True)
        options.setdefault("vocab_size", len(tokenizer))
    model, _ = tiny_model(family, **options)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def prompt_for(base: str, task: Task = TASK, seed: int = 0, **changes: Any) -> SoftPrompt:
    backbone = Backbone.from_pretrained(base, "float32", "cpu")
    generator = torch.Generator().manual_seed(seed)
    prompt_PH = torch.randn(task.num_virtual_tokens, backbone.width, generator=generator) * 0.5
    return SoftPrompt(prompt_PH, task, base, backbone.fingerprint, **changes)


def loaded(path: Path) -> tuple[Any, Any]:
    """Model and tokenizer, by plain transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    return model, transformers.AutoTokenizer.from_pretrained(path)


@torch.no_grad()
def label_log_probs(model: Any, ids: list[int], label_ids: list[list[int]], never: list[int]) -> Tensor:
    """The log-probability of each label behind a row, by plain transformers, where some ids cannot come."""
    found = []
    for own in label_ids:
        logits_TV = model(torch.tensor([[*ids, *own]])).logits[0, len(ids) - 1 : -1]
        logits_TV[:, never] = -torch.inf
        found.append(logits_TV.log_softmax(dim=1)[range(len(own)), own].sum())
    return torch.stack(found)


def same_answers(base: str, directory: Path, prompts: dict[str, SoftPrompt]) -> None:
    """Labels, log-probabilities and greedy text of the merged model are ptuning's own.

    Rows that the base had in reserve cannot come in the merged model, so log-probabilities are compared among labels.
    """
    lm = PromptedLM.from_pretrained(base, prompts, dtype="float32", device="cpu")
    merged = MergedPrompts.load(directory)
    model, tokenizer = loaded(directory)
    num_rows = lm.backbone.model.get_input_embeddings().num_embeddings
    taken = [i for i in merged.suppressed_ids if i < num_rows]
    options = {"suppress_tokens": taken} if taken else {}
    for name, prompt in prompts.items():
        texts = merged.texts(ROWS, name)
        all_ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        assert all_ids == merged.ids(ROWS, name)
        assert prompt.task is not None
        label_ids = [list(each) for each in merged.prompts[name].label_ids.values()]
        for row, ids in zip(ROWS, all_ids, strict=True):
            if prompt.task.is_classification:
                expected = torch.tensor(lm.log_probs([{**row, "label": label} for label in VERBALIZER], name))
                found = label_log_probs(model, ids, label_ids, merged.suppressed_ids)
                if taken:
                    expected, found = expected.log_softmax(dim=0), found.log_softmax(dim=0)
                assert torch.allclose(found, expected, atol=2e-5), name
            out = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :]
            (text,) = lm.generate([row], name, max_new_tokens=6, **options)
            assert tokenizer.decode(out, skip_special_tokens=True) == text


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_answers_as_ptuning_does(family: str, is_tied: bool, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", family, tie_word_embeddings=is_tied)
    prompts = {"film": prompt_for(base), "words": prompt_for(base, WRITTEN, 1), "chat": prompt_for(base, CHAT, 2)}
    merge(base, prompts, tmp_path / "merged")
    same_answers(base, tmp_path / "merged", prompts)


def test_a_projected_embedding_is_merged(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", "opt", word_embed_proj_dim=16)
    prompts = {"film": prompt_for(base)}
    assert prompts["film"].width == 16
    merge(base, prompts, tmp_path / "merged")
    same_answers(base, tmp_path / "merged", prompts)


@pytest.mark.parametrize("is_tied", [True, False])
def test_no_virtual_token_is_ever_sampled(is_tied: bool, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tie_word_embeddings=is_tied)
    prompt = prompt_for(base)
    loud = dataclasses.replace(prompt, embeddings_PH=prompt.embeddings_PH * 20)  # of a tied head, the likeliest tokens
    merged = merge(base, {"film": loud}, tmp_path / "merged")
    model, _ = loaded(tmp_path / "merged")
    ids = torch.tensor(merged.ids(["a good film"])).repeat(50, 1)
    torch.manual_seed(0)
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "temperature": 2.0, "pad_token_id": 2}
    out = model.generate(ids, max_new_tokens=20, min_new_tokens=20, **options)[:, ids.shape[1] :]
    assert out.shape == (50, 20)
    assert not set(out.unique().tolist()) & set(merged.suppressed_ids)
    model.generation_config.suppress_tokens = None
    if is_tied:  # nothing but this keeps them out
        out = model.generate(ids, max_new_tokens=20, min_new_tokens=20, **options)[:, ids.shape[1] :]
        assert set(out.unique().tolist()) & set(merged.suppressed_ids)


def test_reserved_tokens_are_taken_first_and_change_no_logit_of_an_own_head(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", reserved=6, tie_word_embeddings=False)
    prompts = {"film": prompt_for(base)}
    merged = merge(base, prompts, tmp_path / "merged")
    assert merged.prompts["film"].tokens == tuple(f"<|reserved_special_token_{i}|>" for i in range(5))
    assert merged.suppressed_ids == [338, 339, 340, 341, 342]
    before, after = loaded(Path(base))[0], loaded(tmp_path / "merged")[0]
    assert before.config.vocab_size == after.config.vocab_size == 344
    tokenizers = [(tmp_path / each / "tokenizer.json").read_bytes() for each in ("base", "merged")]
    assert tokenizers[0] == tokenizers[1]
    assert torch.equal(before.lm_head.weight, after.lm_head.weight)
    lm = PromptedLM.from_pretrained(base, prompts, dtype="float32", device="cpu")
    (ids,) = merged.ids(["a good film"])
    (expected,) = lm.log_probs([{"text": "a good film", "label": "negative"}])
    label = [merged.prompts["film"].label_ids["negative"]]
    assert float(label_log_probs(after, ids, [list(each) for each in label], [])) == pytest.approx(expected, abs=2e-5)


def test_a_few_reserved_tokens_and_new_ones_make_a_prompt(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", reserved=2)
    merged = merge(base, {"film": prompt_for(base)}, tmp_path / "merged")
    assert merged.prompts["film"].tokens == (
        *("<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
        *("<|film_2|>", "<|film_3|>", "<|film_4|>"),
    )
    assert loaded(tmp_path / "merged")[0].config.vocab_size == 343


def test_rows_beyond_the_tokenizer_are_used_before_any_is_appended(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", vocab_size=384)
    prompts = {"film": prompt_for(base), "words": prompt_for(base, WRITTEN)}
    merged = merge(base, prompts, tmp_path / "merged")
    model, tokenizer = loaded(tmp_path / "merged")
    assert (model.config.vocab_size, len(tokenizer)) == (384, 347)
    assert merged.suppressed_ids == list(range(338, 347))
    assert json.loads((tmp_path / "merged" / MERGED_FILE).read_text())["num_rows_appended"] == 0
    same_answers(base, tmp_path / "merged", prompts)


def test_rows_are_appended_where_there_are_none(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", vocab_size=340, tie_word_embeddings=False)
    merge(base, {"film": prompt_for(base)}, tmp_path / "merged")
    model, _ = loaded(tmp_path / "merged")
    assert model.config.vocab_size == model.lm_head.out_features == 343
    assert not model.lm_head.weight[340:].any()
    assert json.loads((tmp_path / "merged" / MERGED_FILE).read_text())["num_rows_appended"] == 3


def test_a_prompt_saved_by_peft_stands_before_the_text(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    prompt = dataclasses.replace(prompt_for(base), task=None, fingerprint=None)
    merged = merge(base, {"film": prompt}, tmp_path / "merged")
    assert merged.texts(["a film"]) == ["<|film_0|><|film_1|><|film_2|><|film_3|><|film_4|><s>a film"]


def test_the_precision_is_the_files_own_or_the_one_that_is_given(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    prompt = prompt_for(base)
    given: list[tuple[dict[str, Any], torch.dtype]] = [({}, torch.float32), ({"dtype": "bfloat16"}, torch.bfloat16)]
    for options, expected in given:
        merge(base, {"film": prompt}, tmp_path / "merged", **options)
        embeddings = loaded(tmp_path / "merged")[0].get_input_embeddings().weight
        assert embeddings.dtype == expected
        assert torch.equal(embeddings[338:], prompt.embeddings_PH.to(expected))


def test_a_task_whose_rows_must_be_short_has_a_text(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    short = dataclasses.replace(TASK, max_length=30)
    merged = merge(base, {"film": prompt_for(base, short)}, tmp_path / "merged")
    assert merged.prompts["film"].text is not None
    assert len(merged.ids(["film " * 30])[0]) < 30


def test_a_base_whose_generation_settings_are_inconsistent_is_merged(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    file = tmp_path / "base" / "generation_config.json"
    settings = {**json.loads(file.read_text()), "temperature": 0.6, "do_sample": False, "suppress_tokens": [5]}
    file.write_text(json.dumps(settings))
    merge(base, {"film": prompt_for(base)}, tmp_path / "merged")
    written = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert written["temperature"] == 0.6
    assert written["suppress_tokens"] == [5, *range(338, 343)]


def test_merging_again_replaces_and_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    prompt, path = prompt_for(base), tmp_path / "merged"
    path.mkdir()
    merge(base, {"film": prompt}, path)
    merge(base, {"again": prompt}, path)
    assert list(MergedPrompts.load(path).prompts) == ["again"]
    (path / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match=r"holds notes\.txt, which is not part of a merged model; expected a new or"):
        merge(base, {"film": prompt}, path)
    assert (path / "notes.txt").read_text() == "mine"
    with pytest.raises(FileError, match=r"base holds .*, which is not part of a merged model"):
        merge(base, {"film": prompt}, base)
    with pytest.raises(FileError, match=r"notes\.txt is a file; expected a new directory"):
        merge(base, {"film": prompt}, path / "notes.txt")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    return saved(tmp_path_factory.mktemp("models") / "base", reserved=1)


def test_prompts_that_cannot_be_merged_are_told(base: str, tmp_path: Path) -> None:
    prompt = prompt_for(base)
    encoder = encoders.Conditioned(prompt.embeddings_PH)
    conditioned = dataclasses.replace(prompt, weights=encoder.state_dict())
    other = Backbone.of(*tiny_model("llama", seed=1, vocab_size=339), "other").fingerprint
    for given, message in (
        ({"film": conditioned}, "a conditioned prompt for a merged model: its virtual tokens depend on each row's"),
        ({"film": prompt.disabled()}, "a prompt without virtual tokens for a merged model"),
        ({"a film": prompt}, "a prompt named 'a film'; expected letters, digits"),
        ({}, "no prompts; expected one or more"),
        ({"film": dataclasses.replace(prompt, fingerprint=other)}, "a prompt tuned on .* another base gives it"),
    ):
        with pytest.raises(PromptError, match=message):
            merge(base, given, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_token_that_is_there_already_is_a_clash(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|film_3|>"])
    tokenizer.save_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(339, mean_resizing=False)
    model.save_pretrained(base)
    with pytest.raises(PromptError, match=r"a prompt named 'film' for a tokenizer with the token <\|film_3\|>"):
        merge(base, {"film": prompt_for(base)}, tmp_path / "merged")


def test_bases_that_cannot_take_prompts_are_told(base: str, tmp_path: Path) -> None:
    prompt = prompt_for(base)
    merge(base, {"film": prompt}, tmp_path / "merged")
    with pytest.raises(ModelError, match="a merged model, as a base; expected the base itself"):
        merge(tmp_path / "merged", {"words": prompt}, tmp_path / "again", allow_other_base=True)
    model, tokenizer = tiny_model("t5")
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="an encoder-decoder, for a merged model; expected a causal model"):
        merge(tmp_path / "t5", {"film": prompt}, tmp_path / "pair")


def test_a_quantized_base_is_refused(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, backbone = prompt_for(base), Backbone.from_pretrained(base, "float32", "cpu")
    backbone.model.config.quantization_config = {"quant_method": "any"}
    monkeypatch.setattr(Backbone, "from_pretrained", lambda *given: backbone)
    with pytest.raises(
        ModelError, match="whose weights are quantized, for a merged model; expected a model with whole"
    ):
        merge(base, {"film": prompt}, tmp_path / "merged")


def test_the_card_tells_how_rows_are_written_and_what_servers_need(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    merged = merge(base, {"film": prompt_for(base)}, tmp_path / "merged")
    card = (tmp_path / "merged" / "README.md").read_text()
    assert repr(merged.prompts["film"].text) in card
    assert '"logit_bias": {"338": -100, "339": -100' in card
    text = merged.prompts["film"].text
    assert text is not None
    assert text.format(text="a good film") == merged.texts(["a good film"])[0]
