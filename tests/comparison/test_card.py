"""The card beside each way that was fitted: it says what was measured, and how to use it."""

import json
import re
from pathlib import Path

import pytest
import yaml
from small import ROWS, WRITING, config_in

import ptuning
from ptuning.model import Backbone

WAYS = ["zero-shot", "tf-idf", "retrieved-hidden", "lora", "all-weights"]
CANNOT_BE_LOADED = ("all-weights",)


@pytest.fixture(scope="module")
def compared(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_in(tmp_path_factory.mktemp("cards"), compare__ways=WAYS, compare__quick=True)
    return ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False).directory


@pytest.mark.parametrize("name", WAYS)
def test_a_card_says_what_was_measured_and_how_to_use_it(compared: Path, name: str, backbone: Backbone) -> None:
    part = compared / name / "all-rows" / "seed-0"
    text, result = (
        (part / "way" / "README.md").read_text(encoding="utf-8"),
        json.loads((part / "result.json").read_text()),
    )
    _, matter, body = text.split("---\n", 2)
    assert yaml.safe_load(matter) == {
        **{"library_name": "ptuning", "base_model": backbone.name, "tags": ["ptuning-compare", name]}
    }
    correct = result["scores"]["accuracy"]
    assert f"{sum(correct) / len(correct):.3f} (" in body
    assert "on 12 test rows" in body
    assert f"to ship beside the base: {result['bytes_to_ship']:,} bytes" in body
    assert re.search(rf"fitted with seed 0 on 20 rows, in a comparison on `?{re.escape(backbone.name)}", body)
    assert "frozen" not in body
    assert ("- forgets: nothing" in body) == (name not in ("lora", "all-weights"))
    assert "labels: `{'negative': ' negative', 'positive': ' positive'}`" in body
    assert re.search(rf"by ptuning {re.escape(ptuning.__version__)} on 20\d\d-\d\d-\d\d", body)
    assert ("its index: " in body) == (name == "retrieved-hidden")
    assert ("ptuning.load_way(" in body) == (name not in CANNOT_BE_LOADED)
    assert ("must be fitted again" in body) == (name in CANNOT_BE_LOADED)


def test_what_the_card_of_a_prompt_says_can_be_run(compared: Path, backbone: Backbone) -> None:
    way = compared / "zero-shot" / "all-rows" / "seed-0" / "way"
    (lines,) = re.findall(r"```python\n(.*?)```", (way / "README.md").read_text(), re.DOTALL)
    told = lines.replace('"THIS DIRECTORY"', "directory, backbone").replace("way.classify", "found = way.classify")
    names = {"directory": way, "backbone": backbone}
    exec(told, names)
    assert len(names["found"]) == 1  # type: ignore[arg-type]


def test_the_card_of_a_way_that_writes_tells_its_scores_and_how_to_write(backbone: Backbone, tmp_path: Path) -> None:
    config = config_in(tmp_path, compare__ways=["zero-shot", "all-weights"], compare__save_weights=True, **WRITING)
    folder = ptuning.compare(config, rows=ROWS, backbone=backbone, verbose=False).directory
    for name in ("zero-shot", "all-weights"):
        way = folder / name / "all-rows" / "seed-0" / "way"
        text = (way / "README.md").read_text()
        assert "- character F1, with its 95 % interval: " in text
        assert "- exact match: " in text
        assert "accuracy" not in text
        assert "labels: free text" in text
        (lines,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        told = lines.replace('"THIS DIRECTORY"', "directory, backbone").replace("way.generate", "found = way.generate")
        names = {"directory": way, "backbone": backbone}
        exec(told, names)
        assert isinstance(names["found"], list)


def test_cards_are_not_shipped(compared: Path) -> None:
    for name in ("zero-shot", "lora"):
        part = compared / name / "all-rows" / "seed-0"
        files = {file: file.stat().st_size for file in (part / "way").rglob("*") if file.is_file()}
        cards = [size for file, size in files.items() if file.name == "README.md"]
        shipped = json.loads((part / "result.json").read_text())["bytes_to_ship"]
        assert cards
        assert shipped == sum(files.values()) - sum(cards)
