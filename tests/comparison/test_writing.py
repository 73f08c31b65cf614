"""Ways that write texts, beside independent code that does the same, and a whole comparison of them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_backbone
from small import ROWS, TEMPLATE, WRITING, config_in, job, little, rows

import ptuning
from ptuning.comparison import bench, measuring, reading
from ptuning.comparison.documents import Documents
from ptuning.comparison.prompting import FewShot, Instruction, ZeroShot
from ptuning.comparison.protocol import Effort, Writer, Writing
from ptuning.comparison.report import Comparison
from ptuning.comparison.retrieval import RetrievedByHiddenStates, RetrievedByWords
from ptuning.comparison.steps import kept_best
from ptuning.comparison.tuning import ConditionedPrompt, PromptTuning
from ptuning.comparison.ways import NAMES
from ptuning.comparison.weights import AllWeights, LastBlock, LoRA, Trained, Weights
from ptuning.errors import ModelError, PromptError, TrainingError
from ptuning.inference import PromptedLM
from ptuning.model import Backbone

WORDS = TEMPLATE.partition("}")[2]
SIX = Writing(6)
READS_LABELS = ["tf-idf", "features", "output-layers"]


@torch.no_grad()
def written(backbone: Backbone, text: str, num_tokens: int) -> str:
    """What plain transformers finds most likely behind a text, a token at a time, the whole read anew."""
    before, ids = backbone.tokenizer(text)["input_ids"], list[int]()
    while len(ids) < num_tokens:
        token = int(backbone.model(torch.tensor([[*before, *ids]])).logits[0, -1].argmax())
        if token in backbone.end_ids:
            break
        ids.append(token)
    found: str = backbone.tokenizer.decode(ids, skip_special_tokens=True)
    return found


@torch.no_grad()
def lost(backbone: Backbone, text: str, answer: str) -> float:
    """The mean loss of an answer's tokens behind a text, by plain transformers."""
    before = backbone.tokenizer(text)["input_ids"]
    after = backbone.tokenizer(answer, add_special_tokens=False)["input_ids"]
    logits_TV = backbone.model(torch.tensor([[*before, *after]])).logits[0].float().log_softmax(dim=1)
    return -sum(float(logits_TV[len(before) - 1 + i, token]) for i, token in enumerate(after)) / len(after)


def require_same(fitted: Writer, backbone: Backbone, before: str = "") -> None:
    """That a way writes and expects what plain transformers does behind a text."""
    texts = [before + WORDS.format(**row) for row in ROWS["test"]]
    assert fitted.answers(rows("test"), SIX) == [written(backbone, text, 6) for text in texts]
    losses = [lost(backbone, text, f" {row['label']}") for text, row in zip(texts, ROWS["test"], strict=True)]
    torch.testing.assert_close(fitted.answer_losses(rows("test")), torch.tensor(losses), atol=2e-4, rtol=1e-4)


def test_zero_shot_and_an_instruction_write_as_plain_transformers(any_backbone: Backbone, tmp_path: Path) -> None:
    given = job(any_backbone, tmp_path, **WRITING)
    require_same(ZeroShot().fit(given), any_backbone)
    require_same(Instruction().fit(given), any_backbone, "good or bad?\n")


def test_few_shot_draws_rows_at_random_and_the_loss_chooses(backbone: Backbone, tmp_path: Path) -> None:
    given = replace(job(backbone, tmp_path, **WRITING), effort=Effort(num_draws=2, demonstrations=(2, 4)))
    found = dict[tuple[str, str], tuple[float, str]]()
    for number in (2, 4):
        for draw in (0, 1):
            chosen = reading.in_turn(given.train, None, draw)[:number]
            shown = "".join(f"{WORDS.format(**row.values)} {row.values['label']}\n\n" for row in chosen)
            losses = [lost(backbone, shown + WORDS.format(**row), f" {row['label']}") for row in ROWS["validation"]]
            found[str(number), str(draw)] = (sum(losses) / len(losses), shown)
    best = min(found, key=lambda each: found[each][0])
    fitted = FewShot().fit(given)
    assert fitted.chosen == {"examples": best[0], "draw": best[1]}
    require_same(fitted, backbone, found[best][1])


def test_the_nearest_rows_or_passages_stand_in_front_of_what_is_written(backbone: Backbone, tmp_path: Path) -> None:
    given = little(job(backbone, tmp_path, **WRITING))
    given = replace(given, passages=["film 61 is dull", "a good film"], effort=replace(given.effort, passages=(1,)))
    for way in (RetrievedByHiddenStates(), RetrievedByWords(), Documents()):
        fitted = way.fit(given)
        shown = [row.values["demonstrations"] for row in fitted.filled(rows("test"))]
        if isinstance(way, Documents):
            assert set(shown) <= {"film 61 is dull\n\n", "a good film\n\n"}
        else:
            assert fitted.chosen == {"examples": "2", "selection": "nearest"}
            assert all(text.count("sentiment: ") == 2 for text in shown)
        texts = [before + WORDS.format(**row) for before, row in zip(shown, ROWS["test"], strict=True)]
        assert fitted.answers(rows("test"), SIX) == [written(backbone, text, 6) for text in texts]
        losses = [lost(backbone, text, f" {row['label']}") for text, row in zip(texts, ROWS["test"], strict=True)]
        torch.testing.assert_close(fitted.answer_losses(rows("test")), torch.tensor(losses), atol=2e-4, rtol=1e-4)


def test_rows_without_labels_are_drawn_in_a_random_order() -> None:
    drawn = [reading.in_turn(rows("train"), None, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(row.where for row in drawn[2]) == sorted(row.where for row in rows("train"))
    labels = "".join(row.values["label"][0] for row in drawn[0])
    assert "ppp" in labels or "nnn" in labels  # which do not take turns


@pytest.mark.parametrize("way", [PromptTuning(), ConditionedPrompt()], ids=lambda way: way.name)
def test_prompt_tuning_writes_as_its_prompt_does(way: PromptTuning, backbone: Backbone, tmp_path: Path) -> None:
    fitted = way.fit(job(backbone, tmp_path, **WRITING))
    lm = PromptedLM(backbone, {"p": fitted.prompt})
    assert fitted.answers(rows("test"), SIX) == lm.generate(ROWS["test"], max_new_tokens=6)
    ended = [-each for each in lm.log_probs(ROWS["test"])]  # with the token that ends an answer
    own = fitted.answer_losses(rows("test"))
    answers = [backbone.tokenizer(f" {row['label']}", add_special_tokens=False)["input_ids"] for row in ROWS["test"]]
    sums = [float(loss) * len(ids) for loss, ids in zip(own, answers, strict=True)]
    assert all(less < more for less, more in zip(sums, ended, strict=True))


@pytest.mark.parametrize(
    ("kind", "family"),
    [("lora", "llama"), ("lora", "gpt_neox"), ("last_block", "opt"), ("all_weights", "gpt2"), ("all_weights", "qwen3")],
)
def test_weights_that_are_not_trained_write_as_the_base(tmp_path: Path, kind: str, family: str) -> None:
    base = tiny_backbone(family)
    weights = Weights(tiny_backbone(family).model, kind, base.pad_id)
    words = job(base, tmp_path, **WRITING).words
    require_same(Trained(weights, kind, base.coder(words), base), base)


@pytest.mark.parametrize("way", [LoRA(), LastBlock(), AllWeights()], ids=lambda way: way.name)
def test_a_way_that_learns_writes_the_answers_of_its_rows(
    way: Any, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = backbone.weights_sha256()
    monkeypatch.setattr(type(way), "rate", 0.03)  # tiny random weights are far from any task
    given = little(job(backbone, tmp_path, train__max_steps=60, **WRITING))
    fitted = way.fit(given)
    answers = fitted.answers(given.train, SIX)
    right = [own.strip() == row.values["label"] for own, row in zip(answers, given.train, strict=True)]
    assert sum(right) > 0.9 * len(right)
    assert given.score(fitted) > given.score(ZeroShot().fit(given)) + 1
    assert backbone.weights_sha256() == before


class Steps:
    """Some steps, each of which adds 1 to a weight."""

    def __init__(self, num_steps: int) -> None:
        self.module = torch.nn.Linear(1, 1).requires_grad_(False)
        self.module.weight.zero_()
        self.settings = type("Settings", (), {"max_steps": num_steps})

    def steps(self) -> Any:
        for step in range(1, self.settings.max_steps + 1):
            self.module.weight += 1
            yield type("Record", (), {"step": step})


def test_the_step_with_the_lowest_loss_is_kept() -> None:
    loop: Any = Steps(5)
    assert kept_best(loop, 5, lambda: -5.0 - abs(float(loop.module.weight) - 3)) == (-5.0, 3)
    assert float(loop.module.weight) == 3


@pytest.mark.parametrize("num_steps", [1, 9, 10, 11, 19, 20, 21, 99])
def test_a_training_is_never_evaluated_more_often_than_is_asked(num_steps: int) -> None:
    loop: Any = Steps(num_steps)
    asked = list[float]()
    kept_best(loop, 10, lambda: asked.append(float(loop.module.weight)) or 0.0)
    assert len(asked) <= 10
    assert asked[-1] == num_steps


def test_scores_that_are_no_numbers_are_told() -> None:
    loop: Any = Steps(5)
    with pytest.raises(TrainingError, match="no finite validation score; expected a number at some step"):
        kept_best(loop, 5, lambda: float("nan"))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> Comparison:
    """A comparison of all ways, with curves."""
    effort = {"num_draws": 1, "demonstrations": (2,), "passages": (1,), "num_evaluations": 2, "num_timings": 1}
    folder = tmp_path_factory.mktemp("writing")
    (folder / "films.md").write_text("".join(f"The film {i} was good.\n" * 8 for i in range(60, 90)))
    whole = bench.Effort
    model = {"model__name_or_path": str(model_directory), "model__dtype": "float32", "model__device": "cpu"}
    chosen = {"compare__seeds": 1, "compare__curve": True, "compare__least_accuracy": 0.01, "train__max_steps": 2}
    kept = {"compare__documents": str(folder / "films.md"), "compare__save_weights": True}
    config = config_in(folder, **model, **chosen, **kept, **WRITING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "Effort", lambda num_rates: whole(num_rates, **effort))
        return ptuning.compare(config, rows=ROWS, verbose=False)


def test_the_ways_that_write_are_compared_and_the_others_skipped(compared: Comparison) -> None:
    assert list(compared.left_out) == READS_LABELS
    assert compared.left_out["tf-idf"].startswith("skipped: texts to write; expected labels, in data.verbalizer")
    assert compared.results.names == [name for name in NAMES if name not in READS_LABELS]
    for way in compared.results.ways:
        part = compared.directory / way.name / "all-rows" / "seed-0"
        result = json.loads((part / "result.json").read_text())
        assert len(result["answers"]) == len(ROWS["test"])
        assert way.score == pytest.approx(sum(result["scores"]["character F1"]) / len(ROWS["test"]))
        assert way.other_scores.keys() == result["scores"].keys() - {"character F1"}
        assert list(way.curve) == ([] if way.name in ("zero-shot", "instruction", "documents") else [20, 16])
        assert (way.index is not None) == (way.name in ("documents", "retrieved-bm25", "retrieved-hidden"))
    assert compared.about["an answer ends at"].startswith("an end-of-text token, a line break or ")


def test_everything_is_told_of_character_f1_and_nothing_of_accuracy(compared: Comparison) -> None:
    table = compared.quality()
    assert list(table.columns)[:3] == ["way", "character F1", "exact match"]
    assert "loss" in table.columns
    assert compared.recommendation.sentence.startswith("Take zero-shot: character F1 0.")
    assert any(each.startswith("character F1 of 0.010 or more: ") for each in compared.recommendation.reasons)
    told = json.loads((compared.directory / "comparison.json").read_text())
    assert told["measure"] == "character F1"
    assert told["ways"]["lora"]["other_scores"].keys() >= {"exact match", "loss"}
    header = (compared.directory / "comparison.csv").read_text().splitlines()[0]
    assert header.startswith("way,character F1,low,high,seeds,exact match,")
    page = (compared.directory / "comparison.html").read_text()
    assert "<h2>Character F1</h2>" in page
    assert "least character F1 0.01" in page
    assert "accuracy" not in "\n".join([*compared.lines(), page]).lower()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in READS_LABELS])
def test_a_way_that_is_brought_back_writes_as_it_did(compared: Comparison, name: str) -> None:
    part = compared.directory / name / "all-rows" / "seed-0"
    loaded = ptuning.load_way(part, device="cpu")
    answers = loaded.generate([{"text": row["text"]} for row in ROWS["test"]])
    assert answers == json.loads((part / "result.json").read_text())["answers"]
    assert loaded.generate([]) == []
    with pytest.raises(PromptError, match=r"classify with a way of the kind .*; expected labels. Use generate"):
        loaded.classify([{"text": "a film"}])


def test_what_is_timed_is_writing(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, timed = measuring.speed_of, list[object]()

    def noted(answer: Any, given: Sequence[Any], repeats: int) -> Any:
        timed.append(answer(given[:1])[0])
        return whole(answer, given, repeats)

    monkeypatch.setattr(measuring, "speed_of", noted)
    config = config_in(tmp_path, compare__ways=["zero-shot"], **WRITING)
    ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False)
    (text,) = timed
    assert isinstance(text, str)
    assert text not in ("negative", "positive")


def test_a_model_that_cannot_write_is_refused_before_anything_is_written(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(backbone), "generates_from_embeddings", False)
    config = config_in(tmp_path, **WRITING)
    with pytest.raises(ModelError, match=r"^texts to write with .*, which can start from ids only; expected a model"):
        ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False)
    assert not Path(config.train.output_dir).exists()
