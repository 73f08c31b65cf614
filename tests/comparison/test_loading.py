"""A way that is brought back answers as it did in the comparison."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_backbone
from safetensors.torch import load_file, save_file
from small import ROWS, VERBALIZER, config_in, rows

import ptuning
from ptuning.comparison import bench, measuring
from ptuning.comparison.reading import label_scores
from ptuning.comparison.ways import NAMES
from ptuning.data import Task
from ptuning.errors import PromptError, PTuningError
from ptuning.model import Backbone

KINDS = {
    **dict.fromkeys(("zero-shot", "instruction", "few-shot"), "prompting"),
    **dict.fromkeys(("retrieved-bm25", "retrieved-hidden"), "retrieval"),
    **dict.fromkeys(("prompt-tuning", "conditioned-prompt"), "prompt-tuning"),
    **{
        name: name for name in ("tf-idf", "documents", "features", "output-layers", "lora", "last-block", "all-weights")
    },
}
LOADED_WITHOUT_A_BASE = ("lora", "tf-idf")  # lora's base comes with its adapter


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The directory of a comparison of a saved model, and the scores that each way gave the test rows."""
    folder, scores = tmp_path_factory.mktemp("loading"), dict[str, torch.Tensor]()
    (folder / "films.md").write_text(
        "".join(f"The film {i} was {('bad', 'good')[i % 3 % 2]}.\n" * 8 for i in range(60, 90))
    )
    model = {"model__name_or_path": str(model_directory), "model__dtype": "float32", "model__device": "cpu"}
    given = {"compare__seeds": 1, "compare__save_weights": True, "compare__documents": str(folder / "films.md")}
    whole, effort = measuring._measured, bench.Effort

    def noted(part: Any, fitted: Any, *others: Any) -> Any:
        scores[part.way] = fitted.label_scores(rows("test"))
        return whole(part, fitted, *others)

    less = {"num_draws": 1, "demonstrations": (2, 4), "passages": (1, 2), "num_evaluations": 2, "num_timings": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_measured", noted)
        patch.setattr(bench, "Effort", lambda num_rates: effort(num_rates, **less))
        comparison = ptuning.compare(config_in(folder, **model, **given), rows=ROWS, verbose=False)
    assert comparison.left_out == {}
    return comparison.directory, scores


@pytest.fixture
def base(model_directory: Path) -> Backbone:
    return Backbone.from_pretrained(model_directory, "float32", "cpu")


def part_of(compared: tuple[Path, Any], name: str) -> Path:
    return compared[0] / name / "all-rows" / "seed-0"


@pytest.mark.parametrize("name", NAMES)
def test_a_way_answers_as_it_did_in_the_comparison(compared: tuple[Path, Any], base: Backbone, name: str) -> None:
    part = part_of(compared, name)
    loaded = ptuning.load_way(part, None if name in LOADED_WITHOUT_A_BASE else base, device="cpu")
    assert loaded.kind == KINDS[name]
    found = loaded.fitted.label_scores(rows("test"))
    torch.testing.assert_close(found, compared[1][name], atol=1e-5, rtol=1e-5)
    answers = loaded.classify([{"text": row["text"]} for row in ROWS["test"]])
    assert [each.label for each in answers] == json.loads((part / "result.json").read_text())["answers"]
    assert all(sum(each.probabilities.values()) == pytest.approx(1) for each in answers)
    assert loaded.classify([]) == []


def test_the_base_is_loaded_as_the_way_names_it_where_it_needs_one(
    compared: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    named, whole = list[str](), Backbone.from_pretrained
    monkeypatch.setattr(Backbone, "from_pretrained", lambda name, *more: named.append(name) or whole(name, *more))
    for name in ("retrieved-hidden", "tf-idf"):
        found = ptuning.load_way(part_of(compared, name), device="cpu").fitted.label_scores(rows("test"))
        torch.testing.assert_close(found, compared[1][name], atol=1e-5, rtol=1e-5)
    assert [Path(name).name for name in named] == ["tiny-llama"]


def test_few_shot_that_is_brought_back_shows_its_examples(compared: tuple[Path, Any], base: Backbone) -> None:
    part = part_of(compared, "few-shot")
    shown = json.loads((part / "way" / "way.json").read_text())["shown"]
    loaded, plain = (ptuning.load_way(each, base) for each in (part, part_of(compared, "zero-shot")))
    told = Task(shown + plain.task.template, verbalizer=VERBALIZER)
    expected = label_scores(base, told, rows("test"))
    torch.testing.assert_close(loaded.fitted.label_scores(rows("test")), expected, atol=1e-4, rtol=1e-4)
    assert shown.count("sentiment:") == int(json.loads((part / "result.json").read_text())["chosen"]["examples"])


def test_a_row_that_is_added_to_those_that_were_saved_counts_at_once(
    compared: tuple[Path, Any], base: Backbone, tmp_path: Path
) -> None:
    for name, column in (("retrieved-bm25", "label"), ("retrieved-hidden", "label"), ("documents", "title")):
        shutil.copytree(part_of(compared, name) / "way", tmp_path / name)
        file, own = tmp_path / name / "rows.json", tmp_path / name / "way.json"
        if name == "documents":
            own.write_text(json.dumps({**json.loads(own.read_text()), "by": "shared words"}))
        (tmp_path / name / "vectors.safetensors").unlink(missing_ok=True)
        added = {"text": "zanzibar plot", column: "positive"}
        file.write_text(json.dumps({"rows": [*json.loads(file.read_text())["rows"], added]}))
        way = ptuning.load_way(tmp_path / name, base).fitted
        (filled,) = way.filled([ptuning.data.as_row("zanzibar plot", "row", ["text"])])  # type: ignore[attr-defined]
        assert "zanzibar plot" in filled.values["demonstrations"].split("\n\n")[-2], name


def test_vectors_whose_file_is_gone_are_made_anew(compared: tuple[Path, Any], base: Backbone, tmp_path: Path) -> None:
    way = tmp_path / "retrieved-hidden"
    shutil.copytree(part_of(compared, way.name) / "way", way)
    (way / "vectors.safetensors").unlink()
    found = ptuning.load_way(way, base).fitted.label_scores(rows("test"))
    torch.testing.assert_close(found, compared[1][way.name], atol=1e-5, rtol=1e-5)


def test_only_changed_weights_are_saved_and_only_where_that_is_asked(
    compared: tuple[Path, Any], base: Backbone, tmp_path: Path, backbone: Backbone
) -> None:
    last, all_of = (part_of(compared, name) / "way" / "weights.safetensors" for name in ("last-block", "all-weights"))
    own = dict(base.model.named_parameters())
    assert load_file(all_of).keys() == own.keys()
    assert {".".join(name.split(".")[:3]) for name in load_file(last)} == {"model.layers.1", "model.norm.weight"}
    result = json.loads((part_of(compared, "last-block") / "result.json").read_text())
    assert last.stat().st_size > result["bytes_to_ship"] == 4 * result["num_trained"]
    config = config_in(tmp_path, compare__ways=["last-block"], compare__seeds=1)
    plain = ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False)
    part = plain.directory / "last-block" / "all-rows" / "seed-0"
    assert not list(part.rglob("*.safetensors"))
    assert plain.results["last-block"].costs.bytes_to_ship == 4 * result["num_trained"]
    with pytest.raises(PromptError, match=r"a way without its weights; .*Compare anew with compare.save_weights: true"):
        ptuning.load_way(part, backbone)


def test_weights_that_are_kept_count_as_those_that_are_not(tmp_path: Path) -> None:
    half = tiny_backbone()
    half = Backbone.of(half.model.bfloat16(), half.tokenizer, "tiny-llama")
    sizes = []
    for is_kept in (True, False):
        config = config_in(tmp_path / str(is_kept), compare__ways=["last-block"], compare__save_weights=is_kept)
        comparison = ptuning.compare(config, rows=ROWS, backbone=half, verbose=False)
        sizes.append(comparison.results["last-block"].costs)
    assert [each.bytes_to_ship for each in sizes] == [2 * each.num_trained for each in sizes]


def test_another_base_is_refused(compared: tuple[Path, Any]) -> None:
    for name in ("few-shot", "retrieved-hidden", "last-block"):
        with pytest.raises(PromptError, match=r"the base tiny-llama; expected .*tiny-llama, with which"):
            ptuning.load_way(part_of(compared, name), tiny_backbone(seed=1))
    with pytest.raises(PromptError, match="expected a base that is loaded with the adapter"):
        ptuning.load_way(part_of(compared, "lora"), tiny_backbone())


def test_an_adapter_is_refused_beside_another_base_than_its_own(compared: tuple[Path, Any], tmp_path: Path) -> None:
    other, way = tiny_backbone(seed=1), tmp_path / "way"
    other.model.save_pretrained(tmp_path / "tiny-llama")
    other.tokenizer.save_pretrained(tmp_path / "tiny-llama")
    shutil.copytree(part_of(compared, "lora") / "way", way)
    own_changed(base=str(tmp_path / "tiny-llama"))(way)
    with pytest.raises(PromptError, match=r"the base .*tiny-llama; expected .*tiny-llama, with which"):
        ptuning.load_way(way, device="cpu")


def test_what_holds_no_way_is_refused(tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(PromptError, match="holds no way"):
        ptuning.load_way(tmp_path, backbone)
    (tmp_path / "way.json").write_text('{"kind": 3}')
    with pytest.raises(PromptError, match=r"way.json is broken"):
        ptuning.load_way(tmp_path, backbone)


def own_changed(**changes: Any) -> Callable[[Path], None]:
    def change(way: Path) -> None:
        own = json.loads((way / "way.json").read_text())
        (way / "way.json").write_text(json.dumps({**own, **changes}))

    return change


def tensor_changed(file: str, name: str, tensor: torch.Tensor | None) -> Callable[[Path], None]:
    def change(way: Path) -> None:
        found = load_file(way / file)
        found = {key: each.clone() for key, each in found.items() if key != name}
        save_file(found if tensor is None else {**found, name: tensor}, way / file)

    return change


def written(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda way: (way / file).write_bytes(content) and None


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("zero-shot", own_changed(writing={"max_new_tokens": 3, "stop_strings": []}), "it has labels, and ends for"),
        ("zero-shot", own_changed(kind="telepathy"), "of the kind telepathy; expected one of prompting, tf-idf"),
        ("zero-shot", own_changed(task={}), r"way.json is broken \(.*template"),
        (
            "zero-shot",
            own_changed(task={"template": "", "verbalizer": {"a": "b"}}),
            r"way.json is broken \(a verbalizer",
        ),
        ("tf-idf", own_changed(words={"film": 0, "good": 7}), "its words are not numbered from 0"),
        ("tf-idf", own_changed(words=None), "it has no words"),
        ("features", own_changed(pooling="middle"), r"way.json is broken \(pooling"),
        ("features", tensor_changed("classifier.safetensors", "bias_C", torch.zeros(3)), r"bias_C has the shape \[3\]"),
        ("features", tensor_changed("classifier.safetensors", "bias_C", None), "it holds mean_H, scale_H, weight_CH"),
        ("output-layers", tensor_changed("head.safetensors", "more", torch.zeros(1)), "it holds linear.bias, .*more"),
        ("output-layers", written("head.safetensors", b"\x80\x04pickle"), r"head.safetensors is broken"),
        ("last-block", written("weights.safetensors", b"0" * (1 << 25)), r"has 33,554,432 bytes"),
        (
            "last-block",
            tensor_changed("weights.safetensors", "model.norm.weight", torch.full((32,), torch.nan)),
            "model.norm.weight holds what is no finite number",
        ),
        ("retrieved-hidden", own_changed(number=0), "number: 0"),
        ("retrieved-hidden", own_changed(by="telepathy"), r"way.json is broken \(by"),
        ("retrieved-hidden", written("rows.json", b'{"rows": []}'), "rows.json holds no rows"),
        ("retrieved-hidden", written("rows.json", b'{"rows": [{"text": "a"}]}'), "row 0 .*label"),
        ("retrieved-bm25", written("rows.json", b'{"rows": [{"text": "a", "label": "b"}]}'), "have other labels: b"),
        ("documents", written("rows.json", b'{"rows": [{"text": 3}]}'), r"rows.json is broken \(rows.0"),
    ],
)
def test_files_that_are_broken_are_refused(
    compared: tuple[Path, Any], base: Backbone, tmp_path: Path, name: str, change: Callable[[Path], None], match: str
) -> None:
    shutil.copytree(part_of(compared, name) / "way", tmp_path / "way")
    change(tmp_path / "way")
    with pytest.raises(PTuningError, match=match):
        ptuning.load_way(tmp_path, base)
