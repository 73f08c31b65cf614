"""A client of a vLLM server must answer as PromptedLM does with the same model, and tell what goes wrong."""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import FakeVLLM
from families import tiny_backbone, tiny_model

from ptuning.data.task import Task
from ptuning.errors import ConfigError, DataError, PromptError, ServerError
from ptuning.export.vllm import server as server_module
from ptuning.export.vllm.client import UnansweredError, VLLMClient
from ptuning.export.vllm.writing import write_vllm
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.model import Backbone
from ptuning.prompts.soft_prompt import SoftPrompt

LABELS = {"negative": " negative", "positive": " positive"}
LONG = {"bad": " very bad film", "good": " very good film", "dull": " very dull", "other": " a plot"}
TASKS = {
    "label": Task("{prompt:3}review: {text} and{prompt:2} the sentiment is", verbalizer=LABELS),
    "long": Task("{prompt:4}the film {text} was", verbalizer=LONG),
    "words": Task("{prompt:4}the film {text} was"),
    "chat": Task("review: {text}\n{prompt:3}\nsentiment:", verbalizer=LABELS, chat_template=True),
    "leading": Task("{prompt:3}review: {text}", verbalizer=LABELS, chat_template=True),
}
ROWS = [{"text": text} for text in ("a good film", "the plot was very dull", "", "1, 2 é (\n", "bad </s> film")]


@dataclasses.dataclass
class Setting:
    """A base, its prompts' export, and a server of it."""

    lm: PromptedLM
    directory: Path
    server: FakeVLLM

    def client(self, **options: Any) -> VLLMClient:
        return VLLMClient.load(self.directory, self.server.url, **options)


def exported(path: Path, family: str = "llama", dtype: str = "float32") -> tuple[PromptedLM, Path]:
    model, tokenizer = tiny_model(family)
    for each in (model, tokenizer):
        each.save_pretrained(path / "base")
    backbone = Backbone.from_pretrained(path / "base", dtype, "cpu")
    generator = torch.Generator().manual_seed(0)
    prompts = {}
    for name, task in TASKS.items():
        drawn_PH = torch.randn(task.num_virtual_tokens, backbone.width, generator=generator) * 0.5
        prompts[name] = SoftPrompt(drawn_PH, task, str(path / "base"), backbone.fingerprint)
    write_vllm(path / "base", prompts, path / "exported", dtype=dtype)
    return PromptedLM(backbone, prompts), path / "exported"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[PromptedLM, Path]:
    return exported(tmp_path_factory.mktemp("vllm"))


@pytest.fixture
def setting(made: tuple[PromptedLM, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    monkeypatch.setattr(server_module, "_FIRST_PAUSE", 0.01)
    lm, directory = made
    with FakeVLLM(lm.backbone.model, lm.backbone.tokenizer) as server:
        yield Setting(lm, directory, server)


def same(found: list[Any], expected: list[Any], atol: float = 2e-5) -> None:
    assert [each.label for each in found] == [each.label for each in expected]
    for own, other in zip(found, expected, strict=True):
        assert own.probabilities == pytest.approx(other.probabilities, abs=atol)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.is_classification])
def test_rows_are_classified_as_by_ptuning_itself(setting: Setting, name: str) -> None:
    with setting.client() as client:
        same(client.classify(ROWS, name), setting.lm.classify(ROWS, name))
        assert client.served.difference < 1e-4


def test_answers_are_written_as_by_ptuning_itself(setting: Setting) -> None:
    with setting.client() as client:
        free = setting.lm.generate(ROWS, "words", 12)
        assert client.generate(ROWS, "words", 12) == free
        stop = free[0][2:4]
        assert client.generate(ROWS, "words", 12, stop_strings=[stop]) == [text.partition(stop)[0] for text in free]
        assert client.generate(ROWS, "chat", 12) == setting.lm.generate(ROWS, "chat", 12)


def test_prompts_are_mixed_in_one_call(setting: Setting) -> None:
    names = ["label", "long", "chat", "label", "leading"]
    with setting.client() as client:
        same(client.classify(ROWS, names), setting.lm.classify(ROWS, names))
        with pytest.raises(PromptError, match="2 prompt names for 5 rows"):
            client.classify(ROWS, ["label", "long"])


def test_text_is_streamed(setting: Setting) -> None:
    expected = setting.lm.generate(ROWS, "words", 12)
    with setting.client() as client:
        texts = dict.fromkeys(range(len(ROWS)), "")
        num_pieces = 0
        for row, text in client.generate(ROWS, "words", 12, stream=True):
            texts[row] += text
            num_pieces += 1
        assert list(texts.values()) == expected
        assert num_pieces > len(ROWS)


def test_a_stream_that_breaks_goes_on_behind_what_has_come(setting: Setting) -> None:
    expected = setting.lm.generate(ROWS[:1], "words", 12)
    setting.server.breaks_stream_after = 5
    with setting.client() as client:
        assert "".join(text for _, text in client.generate(ROWS[:1], "words", 12, stream=True)) == expected[0]
    (first, second) = (body for _, body in setting.server.asked if body.get("stream"))
    assert (first["max_tokens"], second["max_tokens"]) == (12, 7)


def test_a_reader_that_stops_ends_the_stream(setting: Setting) -> None:
    with setting.client(concurrency=1) as client:
        pieces = client.generate(ROWS, "words", 12, stream=True)
        next(pieces)
        pieces.close()
    assert len([body for _, body in setting.server.asked if body.get("stream")]) < len(ROWS)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "granite"])
def test_embeddings_are_those_that_the_model_computes_with(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, directory = exported(tmp_path, family)
    with FakeVLLM(lm.backbone.model, lm.backbone.tokenizer) as server, VLLMClient.load(directory, server.url) as client:
        same(client.classify(ROWS, "label"), lm.classify(ROWS, "label"))
        ids = torch.arange(10)
        assert torch.equal(client.prompts.embeddings.of(ids.tolist()), lm.backbone.embed(ids))


def test_the_servers_precision_is_sent(tmp_path: Path) -> None:
    lm, directory = exported(tmp_path, dtype="bfloat16")
    with FakeVLLM(lm.backbone.model, lm.backbone.tokenizer) as server, VLLMClient.load(directory, server.url) as client:
        found = client.classify(ROWS, "label")
        assert {each.dtype for each in server.rows} == {torch.bfloat16}
    same(found, lm.classify(ROWS, "label"), atol=0.02)


def test_a_prompt_is_the_same_bytes_in_every_request(setting: Setting) -> None:
    with setting.client() as client:
        client.classify(ROWS, "label")
        client.generate(ROWS, "words", 2)
    rows = [each for each in setting.server.rows if len(each) > 4]
    for prompt, size, count in (("label", 3, len(ROWS)), ("words", 4, len(ROWS))):
        own = setting.lm.prompts[prompt].embeddings_PH[:size].numpy().tobytes()
        assert sum(each[:size].numpy().tobytes() == own for each in rows) == count


def test_a_row_is_one_request_and_penalties_are_switched_off(setting: Setting) -> None:
    setting.server.default_penalty = 1.3  # of the model's generation settings
    with setting.client() as client:
        client.classify(ROWS, "label")
        client.classify(ROWS, "long")
        client.generate(ROWS, "words", 2)
        num_bodies = len(setting.server.asked)
        assert num_bodies == 1 + 3 * len(ROWS)  # the probes, and one for each row
        assert client.server.num_requests == num_bodies
        sizes = [len(body["prompt_embeds"]) for _, body in setting.server.asked if "logprobs" in body]
        assert sizes == [3, *[1] * 5, *[5] * 5]  # beginnings of the long labels: "", very, very bad, very good, a
    for _, body in setting.server.asked:
        assert (body["repetition_penalty"], body["presence_penalty"], body["frequency_penalty"]) == (1.0, 0.0, 0.0)
        assert not {"echo", "prompt_logprobs"} & set(body)


def test_labels_of_several_tokens_are_scored_by_their_whole_path(setting: Setting) -> None:
    setting.server.logprobs_mode = "processed_logprobs"
    with setting.client() as client:
        same(client.classify(ROWS, "long"), setting.lm.classify(ROWS, "long"))
        same(client.classify(ROWS, "label"), setting.lm.classify(ROWS, "label"))


def test_only_virtual_tokens_are_embedded_where_the_chat_template_allows(setting: Setting) -> None:
    rows = [*ROWS, {"text": "a <prompt_embeds> film"}]
    with setting.client() as client:
        same(client.classify(rows, "chat"), setting.lm.classify(rows, "chat"))
    paths = [path for path, _ in setting.server.asked]
    assert paths.count("/v1/chat/completions") == len(ROWS)
    assert len(setting.server.rows[0]) > 3  # the row with the server's own mark, sent whole
    assert len(setting.server.rows) == 1


def test_a_server_with_another_chat_template_gets_rows_whole(setting: Setting) -> None:
    setting.server.tokenizer.chat_template = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"
    with setting.client() as client:
        same(client.classify(ROWS, "chat"), setting.lm.classify(ROWS, "chat"))
        num_before = len(setting.server.asked)
        client.classify(ROWS, "chat")
    assert {path for path, _ in setting.server.asked[num_before:]} == {"/v1/completions"}


def test_no_more_requests_are_at_work_than_allowed(setting: Setting) -> None:
    setting.server.delay = 0.02
    with setting.client(concurrency=3) as client:
        client.classify(ROWS * 4, "label")
    assert setting.server.most_at_once == 3


def test_failures_that_pass_are_tried_again(setting: Setting) -> None:
    with setting.client() as client:
        client.classify(ROWS[:1], "label")
        setting.server.failures.extend([500, 0, 503, 429])
        num_before = len(setting.server.asked)
        same(client.classify(ROWS[:1], "label"), setting.lm.classify(ROWS[:1], "label"))
        assert len(setting.server.asked) - num_before == 5


def test_tries_have_a_bound_and_a_row_at_which_the_server_fails_costs_no_other(setting: Setting) -> None:
    with setting.client(max_retries=2, concurrency=1) as client:
        client.classify(ROWS[:1], "label")
        setting.server.failures.extend([500, 500, 500])
        num_before = len(setting.server.asked)
        with pytest.raises(
            UnansweredError, match=r"1 of 5 rows unanswered \(rows 0\): a row at which the server"
        ) as told:
            client.classify(ROWS, "label")
    assert len(setting.server.asked) - num_before == 3 + 4
    assert told.value.rows == (0,)
    expected = setting.lm.classify(ROWS, "label")
    same([told.value.answers[i] for i in range(1, 5)], expected[1:])


def test_a_server_that_dies_half_way_leaves_rows_unanswered_and_comes_back(setting: Setting) -> None:
    rows = ROWS * 4
    with setting.client(max_retries=1, concurrency=2) as client:
        setting.server.dies_after = 1 + 8
        with pytest.raises(
            UnansweredError, match=r"rows unanswered .* which does not answer .* until it is up"
        ) as told:
            client.classify(rows, "label")
        assert len(told.value.answers) == 8
        assert sorted([*told.value.answers, *told.value.rows]) == list(range(20))
        assert len(setting.server.asked) <= 1 + 8 + 2 * 2  # the rest was not asked for in vain
        setting.server.dies_after = 10**9
        again = client.classify([rows[i] for i in told.value.rows], "label")
    found = {**told.value.answers, **dict(zip(told.value.rows, again, strict=True))}
    same([found[i] for i in range(20)], setting.lm.classify(rows, "label"))


def test_rows_that_are_too_long_are_named_and_the_others_answered(setting: Setting) -> None:
    setting.server.max_model_len = 40
    rows = [*ROWS[:2], {"text": "film " * 30}, ROWS[0]]
    with setting.client() as client:
        with pytest.raises(
            UnansweredError, match=r"\(rows 2\): row 2: 49 tokens .* at most 40, .* --max-model"
        ) as told:
            client.classify(rows, "label")
        assert sorted(told.value.answers) == [0, 1, 3]
        with pytest.raises(UnansweredError, match=r"row 0: \d+ tokens with its answer; expected at most 40"):
            client.generate(ROWS[:1], "words", 38)
        client.served  # noqa: B018
        setting.server.max_model_len = 20  # a server that told otherwise
        with pytest.raises(UnansweredError, match=r"rows 1.*too long for the server .The decoder prompt"):
            client.classify([ROWS[2], {"text": "film " * 20}], "long")


def test_servers_that_cannot_answer_are_told(setting: Setting, tmp_path: Path) -> None:
    other = tiny_backbone(seed=1).model
    wide = tiny_backbone(hidden_size=64).model
    base = setting.server.model
    for changes, message in (
        ({"takes_embeds": False}, "which takes no embeddings; expected a vLLM that was started with --enable-prompt"),
        (
            {"model": other},
            r"whose model tiny thinks otherwise than .*base .*differ by \d.* Serve that model, or allow",
        ),
        ({"model": wide}, "serves another model .*hidden_size 32 does not match the model's hidden_size 64"),
        ({"api_key": "secret"}, "does not accept the key .401 Unauthorized.; expected the server's key. Set VLLM_API"),
        ({"version": "0.25.1"}, "a vLLM 0.25.1; expected 0.26 or newer, in which CVE-2026-73557 is mended"),
        ({"names": ["a", "b"]}, "with the models a, b; expected a single one. Name the base with --model"),
        ({"names": []}, "with the models none; expected a single one"),
        ({"knows_logprob_ids": False}, "expected a server that takes `logprob_token_ids`. Upgrade vLLM"),
        ({"dies_after": 0}, "which does not answer .* expected a server at work. Start it"),
    ):
        before = {name: getattr(setting.server, name) for name in changes}
        vars(setting.server).update(changes)
        with setting.client(max_retries=1) as client, pytest.raises(ServerError, match=message):
            client.classify(ROWS, "label")
        vars(setting.server).update(before)
    assert setting.server.model is base
    with setting.client(model="c") as client, pytest.raises(ServerError, match="models tiny; expected one named c"):
        client.classify(ROWS, "label")


def test_a_servers_key_version_and_name_are_taken(setting: Setting) -> None:
    setting.server.api_key, setting.server.version, setting.server.names = "secret", "", ["a", "tiny"]
    with setting.client(api_key="secret", model="tiny") as client:
        same(client.classify(ROWS, "label"), setting.lm.classify(ROWS, "label"))
        assert client.served.name == "tiny"


def test_another_base_is_taken_where_that_is_wanted(setting: Setting) -> None:
    setting.server.model = tiny_backbone(seed=1).model
    with setting.client(allow_other_base=True) as client:
        assert len(client.classify(ROWS, "label")) == len(ROWS)
        assert client.served.difference > 0.5


def test_mistakes_are_told_before_anything_is_sent(setting: Setting) -> None:
    with setting.client() as client:
        with pytest.raises(PromptError, match="prompt 'none'; expected one of label, long"):
            client.classify(ROWS, "none")
        with pytest.raises(PromptError, match="prompt None; expected one of"):
            client.classify(ROWS)
        with pytest.raises(PromptError, match="classify with prompt 'words', which has no verbalizer"):
            client.classify(ROWS, "words")
        with pytest.raises(DataError, match="row 1"):
            client.classify([ROWS[0], {"txt": "a"}], "label")
        with pytest.raises(PromptError, match="max_new_tokens=0"):
            client.generate(ROWS, "words", 0)
        with pytest.raises(PromptError, match="stop_strings='a'"):
            client.generate(ROWS, "words", 5, stop_strings="a")
        assert client.classify([], "label") == []
    for url in ("127.0.0.1:8000", "ftp://a", ""):
        with pytest.raises(ConfigError, match=r"the address .* expected one such as http://127\.0\.0\.1:8000"):
            VLLMClient.load(setting.directory, url)
    with pytest.raises(ConfigError, match="a key that no header can hold"):
        VLLMClient.load(setting.directory, "http://127.0.0.1:8000", api_key="a\nb")
    assert setting.server.asked == []


def test_something_that_is_no_such_server_is_told(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeVLLM, "answer", lambda *_: iter(()))
    with setting.client(max_retries=0) as client, pytest.raises(ServerError, match="something else than JSON"):
        client.classify(ROWS, "label")


def test_threads_may_share_a_client(setting: Setting) -> None:
    expected, found = setting.lm.classify(ROWS, "label"), dict[int, Any]()
    with setting.client() as client:

        def work(i: int) -> None:
            found[i] = client.classify(ROWS, "label")

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    for i in range(4):
        same(found[i], expected)
