"""A way that is brought back answers as it did in the comparison."""

import json
from pathlib import Path

import pytest
import torch
from families import tiny_backbone
from small import ROWS, VERBALIZER, config_in, rows

import ptuning
from ptuning.comparison.reading import label_scores
from ptuning.data import Task
from ptuning.errors import PromptError
from ptuning.model import Backbone

WAYS = {"few-shot": "prompting", "features": "features", "prompt-tuning": "prompt-tuning", "lora": "lora"}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> Path:
    """The directory of a comparison of a saved model."""
    folder = tmp_path_factory.mktemp("loading")
    model = {"model__name_or_path": str(model_directory), "model__dtype": "float32", "model__device": "cpu"}
    chosen = {"compare__ways": [*WAYS, "zero-shot", "tf-idf"], "compare__seeds": 1}
    return ptuning.compare(config_in(folder, **model, **chosen), rows=ROWS, verbose=False).directory


@pytest.mark.parametrize("name", WAYS)
def test_a_way_answers_as_it_did_in_the_comparison(compared: Path, name: str) -> None:
    part = compared / name / "all-rows" / "seed-0"
    loaded = ptuning.load_way(part, device="cpu")
    assert loaded.kind == WAYS[name]
    answers = loaded.classify([{"text": row["text"]} for row in ROWS["test"]])
    assert [each.label for each in answers] == json.loads((part / "result.json").read_text())["answers"]
    assert all(sum(each.probabilities.values()) == pytest.approx(1) for each in answers)
    assert loaded.classify([]) == []


def test_few_shot_that_is_brought_back_shows_its_examples(compared: Path) -> None:
    part = compared / "few-shot" / "all-rows" / "seed-0"
    shown = json.loads((part / "way" / "way.json").read_text())["shown"]
    loaded = ptuning.load_way(part, device="cpu")
    plain = ptuning.load_way(compared / "zero-shot" / "all-rows" / "seed-0", device="cpu")
    told = Task(shown + plain.task.template, verbalizer=VERBALIZER)
    expected = label_scores(plain.fitted.backbone, told, rows("test"))  # type: ignore[attr-defined]
    torch.testing.assert_close(loaded.fitted.label_scores(rows("test")), expected, atol=1e-4, rtol=1e-4)
    assert shown.count("sentiment:") == int(json.loads((part / "result.json").read_text())["chosen"]["examples"])


def test_a_loaded_base_is_used_and_another_one_refused(compared: Path, model_directory: Path) -> None:
    part = compared / "few-shot" / "all-rows" / "seed-0"
    own = ptuning.Backbone.from_pretrained(model_directory, "float32", "cpu")
    assert ptuning.load_way(part, own).fitted.backbone is own  # type: ignore[attr-defined]
    with pytest.raises(PromptError, match=r"the base tiny-llama; expected .*tiny-llama, with which"):
        ptuning.load_way(part, tiny_backbone(seed=1))


def test_what_cannot_be_brought_back_is_refused(compared: Path, tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(PromptError, match="a way of the kind tf-idf; expected one of prompting, prompt-tuning"):
        ptuning.load_way(compared / "tf-idf" / "all-rows" / "seed-0", backbone)
    with pytest.raises(PromptError, match="holds no way"):
        ptuning.load_way(tmp_path, backbone)
    (tmp_path / "way.json").write_text('{"kind": 3}')
    with pytest.raises(PromptError, match=r"way.json is broken"):
        ptuning.load_way(tmp_path, backbone)
