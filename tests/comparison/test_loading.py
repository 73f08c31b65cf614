"""A way that is brought back answers as it did in the comparison."""

import json
from pathlib import Path

import pytest
from families import tiny_backbone
from small import ROWS, VERBALIZER, config_in

import ptuning
from ptuning.errors import PromptError
from ptuning.model import Backbone

WAYS = {"few-shot": "prompting", "features": "features", "prompt-tuning": "prompt-tuning", "lora": "lora"}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> Path:
    """The directory of a comparison of a saved model."""
    folder = tmp_path_factory.mktemp("loading")
    model = {"model__name_or_path": str(model_directory), "model__dtype": "float32", "model__device": "cpu"}
    chosen = {"compare__ways": [*WAYS, "tf-idf"], "compare__seeds": 1}
    return ptuning.compare(config_in(folder, **model, **chosen), rows=ROWS, verbose=False).directory


@pytest.mark.parametrize("name", WAYS)
def test_a_way_answers_as_it_did_in_the_comparison(compared: Path, name: str) -> None:
    part = compared / name / "all-rows" / "seed-0"
    loaded = ptuning.load_way(part, device="cpu")
    assert loaded.kind == WAYS[name]
    answers = loaded.classify([{"text": row["text"]} for row in ROWS["test"]])
    predicted = json.loads((part / "result.json").read_text())["predicted"]
    assert [each.label for each in answers] == [list(VERBALIZER)[i] for i in predicted]
    assert all(sum(each.probabilities.values()) == pytest.approx(1) for each in answers)
    assert loaded.classify([]) == []


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
