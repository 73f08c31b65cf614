"""Each way, beside independent code that does the same."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import review_rows
from families import tiny_backbone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from small import ROWS, TEMPLATE, VERBALIZER, job, little, rows

from ptuning.comparison import reading, ways
from ptuning.comparison.features import PENALTIES, Features, TfIdf
from ptuning.comparison.heads import OutputLayers
from ptuning.comparison.prompting import FewShot, Instruction, ZeroShot
from ptuning.comparison.protocol import Effort, Fitted, Job, SkippedError, labels_of
from ptuning.comparison.retrieval import RetrievedByHiddenStates, RetrievedByWords
from ptuning.comparison.tuning import ConditionedPrompt, PromptTuning, Tuned
from ptuning.comparison.weights import AllWeights, LastBlock, LoRA, Weights, last_parts
from ptuning.data import Example, Row
from ptuning.errors import ConfigError, DataError
from ptuning.evaluation import WITH, evaluate_rows
from ptuning.model import Backbone
from ptuning.training import Loop, train
from ptuning.training.validator import Validator

WORDS = TEMPLATE.partition("}")[2]


@torch.no_grad()
def scored(backbone: Backbone, text: str) -> list[float]:
    """The log-probability of each label behind a text, by plain transformers, one row and one label at a time."""
    found = []
    for label in VERBALIZER.values():
        before = backbone.tokenizer(text)["input_ids"]
        after = backbone.tokenizer(label, add_special_tokens=False)["input_ids"]
        logits_TV = backbone.model(torch.tensor([[*before, *after]])).logits[0].float().log_softmax(dim=1)
        found.append(sum(float(logits_TV[len(before) - 1 + i, token]) for i, token in enumerate(after)))
    return found


def of_tests(fitted: Fitted) -> torch.Tensor:
    return fitted.label_scores(rows("test"))


def test_zero_shot_and_an_instruction_score_as_plain_transformers(any_backbone: Backbone, tmp_path: Path) -> None:
    given = job(any_backbone, tmp_path)
    plain = [scored(any_backbone, WORDS.format(**row)) for row in ROWS["test"]]
    torch.testing.assert_close(of_tests(ZeroShot().fit(given)), torch.tensor(plain), atol=2e-4, rtol=1e-4)
    instructed = [scored(any_backbone, "good or bad?\n" + WORDS.format(**row)) for row in ROWS["test"]]
    torch.testing.assert_close(of_tests(Instruction().fit(given)), torch.tensor(instructed), atol=2e-4, rtol=1e-4)


def test_few_shot_scores_as_plain_transformers(backbone: Backbone, tmp_path: Path) -> None:
    given = job(backbone, tmp_path)
    fitted = FewShot().fit(given)
    shown = "".join(
        f"{WORDS.format(**row.values)} {row.values['label']}\n\n"
        for row in reading.in_turn(given.train, "label", int(fitted.chosen["draw"]))[: int(fitted.chosen["examples"])]
    )
    plain = [scored(backbone, shown + WORDS.format(**row)) for row in ROWS["test"]]
    torch.testing.assert_close(of_tests(fitted), torch.tensor(plain), atol=2e-4, rtol=1e-4)
    assert fitted.extra_tokens == len(backbone.tokenizer(shown, add_special_tokens=False)["input_ids"])


def test_validation_rows_choose_the_demonstrations(backbone: Backbone, tmp_path: Path) -> None:
    given = job(backbone, tmp_path)
    labels = torch.tensor(labels_of(given.task, given.validation))
    found = []
    for number in (4, 8, 16):
        for draw in range(3):
            chosen = reading.in_turn(given.train, "label", draw)[:number]
            shown = "".join(f"{WORDS.format(**row.values)} {row.values['label']}\n\n" for row in chosen)
            scores = torch.tensor([scored(backbone, shown + WORDS.format(**row)) for row in ROWS["validation"]])
            found.append((float((scores.argmax(1) == labels).float().mean()), str(number), str(draw)))
    best = max(found, key=lambda each: each[0])
    assert FewShot().fit(given).chosen == {"examples": best[1], "draw": best[2]}


def test_demonstrations_that_do_not_fit_are_fewer_or_refused(tmp_path: Path) -> None:
    short = tiny_backbone("llama", max_position_embeddings=120)
    assert int(FewShot().fit(job(short, tmp_path)).chosen["examples"]) < 4
    shorter = tiny_backbone("llama", max_position_embeddings=40)
    with pytest.raises(DataError, match=r"at most .* for one"):
        FewShot().fit(job(shorter, tmp_path))


def test_tf_idf_is_scikit_learn_alone(backbone: Backbone, tmp_path: Path) -> None:
    given = job(backbone, tmp_path)
    texts = [row["text"] for row in ROWS["train"]]
    counter = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    labels = [row["label"] for row in ROWS["train"]]
    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": list(PENALTIES)}, cv=StratifiedKFold(5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(counter.fit_transform(texts), labels)
    alone = search.decision_function(counter.transform([row["text"] for row in ROWS["test"]]))
    fitted = TfIdf().fit(given)
    scores_NC = of_tests(fitted)
    torch.testing.assert_close(scores_NC[:, 1] - scores_NC[:, 0], torch.tensor(alone).float(), atol=0, rtol=1e-3)
    assert fitted.chosen == {"C": f"{search.best_params_['C']:g}"}


def test_a_label_without_training_rows_never_wins(backbone: Backbone, tmp_path: Path) -> None:
    labels = {"unseen": " the", **VERBALIZER}
    fitted = TfIdf().fit(job(backbone, tmp_path, data__verbalizer=labels))
    assert set(of_tests(fitted).argmax(dim=1).tolist()) == {1, 2}


def test_hidden_states_are_those_of_rows_read_alone(any_backbone: Backbone, tmp_path: Path) -> None:
    given = job(any_backbone, tmp_path)
    last_NH, mean_NH = reading.hidden_states(any_backbone, given.words, rows("test"), batch_size=5)
    for i, row in enumerate(ROWS["test"]):
        ids = torch.tensor([any_backbone.tokenizer(WORDS.format(**row))["input_ids"]])
        with torch.no_grad():
            states_TH = any_backbone.model(ids, output_hidden_states=True).hidden_states[-1][0].float()
        torch.testing.assert_close(last_NH[i], states_TH[-1], atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(mean_NH[i], states_TH.mean(dim=0), atol=2e-4, rtol=1e-3)


def test_features_are_a_linear_classifier_on_hidden_states(backbone: Backbone, tmp_path: Path) -> None:
    given = job(backbone, tmp_path)
    fitted = Features().fit(given)
    state_NH = reading.hidden_states(backbone, given.words, given.train)[fitted.chosen["state"] == "mean"]
    scaled = ((state_NH - state_NH.mean(0)) / state_NH.std(0, correction=0)).numpy()
    alone = LogisticRegression(C=float(fitted.chosen["C"]), max_iter=1000).fit(
        scaled, labels_of(given.task, given.train)
    )
    assert fitted.label_scores(given.train).argmax(1).tolist() == alone.predict(scaled).tolist()


def test_the_nearest_rows_stand_nearest(backbone: Backbone, tmp_path: Path) -> None:
    given = little(job(backbone, tmp_path))
    for way in (RetrievedByHiddenStates(), RetrievedByWords()):
        fitted = way.fit(given)
        (text,) = {row.values["demonstrations"] for row in fitted.filled([given.train[7]])}
        asked = [part.partition("review: ")[2].partition("\n")[0] for part in text.split("\n\n") if part]
        assert len(asked) == 2
        assert asked[-1] == ROWS["train"][7]["text"], way.name


def test_validation_rows_choose_between_the_nearest_and_balanced_examples(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, wanted = little(job(backbone, tmp_path)), "balanced"
    shown = dict[str, set[str]]()

    def judged(given: Job, fitted: Any) -> float:
        own, selection = fitted.filled(given.choosing), fitted.chosen["selection"]
        shown[selection] = {str(sorted(label in row.values["demonstrations"] for label in VERBALIZER)) for row in own}
        return float(selection == wanted)

    monkeypatch.setattr(Job, "score", judged)
    for way in (RetrievedByHiddenStates(), RetrievedByWords()):
        for wanted in ("nearest", "balanced"):
            fitted = way.fit(given)
            assert fitted.chosen == {"examples": "2", "selection": wanted}
            (text,) = {row.values["demonstrations"] for row in fitted.filled([given.train[7]])}
            own = [text.count(label) for label in VERBALIZER.values()]
            assert own == [1, 1] if wanted == "balanced" else sum(own) == 2
        assert shown["balanced"] == {"[True, True]"}, way.name
    assert shown["nearest"] != {"[True, True]"}


def test_what_an_index_costs_is_measured(backbone: Backbone, tmp_path: Path) -> None:
    given = little(job(backbone, tmp_path))
    by_states, by_words = RetrievedByHiddenStates().fit(given).index_costs, RetrievedByWords().fit(given).index_costs
    assert by_states is not None
    assert by_words is not None
    assert by_states.num_bytes == len(given.train) * backbone.width * 4
    assert 300 < by_words.num_bytes < 10_000
    assert all(0 < each < 1 for each in (by_states.seconds, by_words.seconds))
    assert 0 < by_words.milliseconds < by_states.milliseconds < 1000
    assert ZeroShot().fit(given).index_costs is None


def test_prompt_tuning_is_a_run_of_ptuning(backbone: Backbone, tmp_path: Path) -> None:
    given = job(backbone, tmp_path / "own", train__output_dir=str(tmp_path / "plain"))
    plain = train(given.config, rows={"train": ROWS["train"], "validation": ROWS["validation"]}, backbone=backbone)
    fitted = PromptTuning().fit(given)
    assert isinstance(fitted, Tuned)
    assert torch.equal(fitted.prompt.embeddings_PH, plain.prompt.embeddings_PH)
    assert (fitted.num_trained, fitted.extra_tokens) == (4 * backbone.width, 4)
    asked = evaluate_rows(backbone, plain.prompt.on(backbone.device), given.task, rows("test"), with_baseline=False)
    scores = asked[WITH].scores.labels_NC
    assert scores is not None
    torch.testing.assert_close(of_tests(fitted), scores.float(), atol=1e-5, rtol=1e-5)


def test_a_conditioned_prompt_is_a_run_of_ptuning_with_that_encoder(backbone: Backbone, tmp_path: Path) -> None:
    given = job(backbone, tmp_path / "own", train__learning_rate=0.3, train__output_dir=str(tmp_path / "plain"))
    run = given.config
    own = replace(
        run, prompt=replace(run.prompt, encoder="conditioned"), train=replace(run.train, learning_rate="auto")
    )
    plain = train(own, rows={"train": ROWS["train"], "validation": ROWS["validation"]}, backbone=backbone)
    fitted = ConditionedPrompt().fit(given)
    assert fitted.prompt.is_conditioned
    assert fitted.prompt.weights.keys() == plain.prompt.weights.keys()
    assert all(torch.equal(each, plain.prompt.weights[name]) for name, each in fitted.prompt.weights.items())
    assert fitted.num_trained == sum(each.numel() for each in fitted.prompt.weights.values())
    with pytest.raises(SkippedError, match=r"prompt.encoder: conditioned; expected another encoder"):
        ConditionedPrompt().require(job(backbone, tmp_path, prompt__encoder="conditioned"))


@pytest.mark.parametrize("kind", ["lora", "last_block", "all_weights"])
def test_weights_that_are_not_trained_score_as_the_base(backbone: Backbone, tmp_path: Path, kind: str) -> None:
    given, model = job(backbone, tmp_path), tiny_backbone().model
    weights, coder = Weights(model.eval(), kind, backbone.pad_id), backbone.coder(given.words)
    found = weights.score_rows(coder.encode(rows("test")), coder.label_ids, batch_size=5).labels_NC
    torch.testing.assert_close(found, of_tests(ZeroShot().fit(given)), atol=2e-4, rtol=1e-4)


def test_the_last_parts_are_the_last_block_and_the_final_norm(any_backbone: Backbone) -> None:
    parts = last_parts(any_backbone.model)
    inside = {id(each) for part in parts for each in part.parameters()}
    names = [name for name, each in any_backbone.model.named_parameters() if id(each) in inside]
    assert not any(".0." in name or "embed" in name for name in names)
    assert len(parts) == 2


@pytest.mark.parametrize("way", [OutputLayers(), LoRA(), LastBlock(), AllWeights()], ids=lambda way: way.name)
def test_a_way_that_learns_fits_its_rows_and_leaves_the_base_alone(
    way: Any, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = backbone.weights_sha256()
    monkeypatch.setattr(type(way), "rate", 0.03, raising=False)  # tiny random weights are far from any task
    given = little(job(backbone, tmp_path, train__max_steps=60))
    fitted = way.fit(given)
    own = fitted.label_scores(given.train).argmax(dim=1)
    assert (own == torch.tensor(labels_of(given.task, given.train))).float().mean() > 0.9
    assert backbone.weights_sha256() == before
    assert not any(each.requires_grad for each in backbone.model.parameters())
    assert fitted.num_trained > 0


def test_each_way_that_learns_tries_as_many_rates(backbone: Backbone, tmp_path: Path, monkeypatch: Any) -> None:
    given = little(job(backbone, tmp_path, train__max_steps=1))
    given = replace(given, effort=replace(given.effort, num_rates=3))
    made, whole = dict[str, list[float]](), Loop.__init__

    def noted(self: Any, module: Any, work: Any, settings: Any, accelerator: Any) -> None:
        made.setdefault(way.name, []).append(settings.learning_rate)
        whole(self, module, work, settings, accelerator)

    monkeypatch.setattr(Loop, "__init__", noted)
    for way in (PromptTuning(), ConditionedPrompt(), OutputLayers(), LoRA()):
        way.fit(given)
    assert {name: len(set(rates)) for name, rates in made.items()} == dict.fromkeys(made, 3)
    assert len(made) == 4
    assert made["conditioned-prompt"][0] == pytest.approx(0.05 * made["prompt-tuning"][0])


def test_a_way_whose_package_is_missing_is_skipped(backbone: Backbone, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for way in (TfIdf(), Features(), RetrievedByWords(), LoRA()):
        with pytest.raises(SkippedError, match=r"which is not installed; expected it. pip install"):
            way.require(job(backbone, tmp_path))


def test_ways_are_chosen_by_name_in_the_tables_order() -> None:
    assert [way.name for way in ways.ways_named(["lora", "zero-shot"])] == ["zero-shot", "lora"]
    assert len(ways.ways_named(None)) == len(set(ways.NAMES)) == 14
    with pytest.raises(ConfigError, match=r"compare.ways: telepathy; expected some of zero-shot"):
        ways.ways_named(["telepathy"])


@pytest.mark.parametrize("num_rows", [20, 70])
def test_the_rows_that_choose_are_of_all_labels_and_the_same_for_a_prompts_run(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_rows: int
) -> None:
    many = sorted(review_rows(200, 1000), key=lambda row: row["label"])
    effort = Effort(num_draws=1, num_choosing_rows=num_rows)
    given = replace(job(backbone, tmp_path), validation=[Row(each, "") for each in many], effort=effort)
    chosen = [row.values for row in given.choosing]
    assert len(chosen) == num_rows
    assert chosen == [row for row in many if row in chosen]
    assert {row["label"] for row in chosen} == set(VERBALIZER)
    read, whole = list[Any](), Validator.measure_baseline

    def noted(self: Any, prompt: Any) -> Any:
        read.append([row.values for row in self._sample(self._inputs.rows["validation"])])
        return whole(self, prompt)

    monkeypatch.setattr(Validator, "measure_baseline", noted)
    for seed in (0, 1):
        PromptTuning().fit(replace(given, seed=seed))
    assert [sorted(each, key=many.index) for each in read] == [chosen] * 2


def test_long_rows_are_read_a_few_at_once_and_what_they_share_does_not_count(backbone: Backbone) -> None:
    own = [Example([1] * 100 + [i] * 300, []) for i in range(2, 42)]
    shared = [Example([1] * 500 + [i] * 30, []) for i in range(2, 42)]
    apart = [Example([i] * 530, []) for i in range(2, 42)]
    assert [reading.rows_at_once(backbone, each) for each in (own, shared, apart)] == [6, 32, 3]
