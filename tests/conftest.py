"""What tests share: tiny models, the real one where it has been downloaded, and whole small runs."""

import csv
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a hub look-up fails at once
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models gain nothing from threads; child processes inherit it

import pytest
from families import tiny_backbone

from ptuning.model import Backbone

REPOSITORY = Path(__file__).parent.parent
ASSETS = REPOSITORY / "assets"
SIX = ("llama", "gpt2", "qwen3", "gemma3_text", "opt", "gpt_neox")  # that differ most in how they place and look


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """A tiny llama."""
    return tiny_backbone()


@pytest.fixture(scope="session", params=SIX)
def any_backbone(request: pytest.FixtureRequest) -> Backbone:
    """A tiny model of each of six families; tests/conformance holds all."""
    return tiny_backbone(request.param)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama saved as an ordinary model directory."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny = tiny_backbone()
    tiny.model.save_pretrained(path)
    tiny.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def real_backbone() -> Backbone:
    """SmolLM2 in fp32; made by scripts/fetch_assets.py."""
    path = ASSETS / "smollm2-135m-instruct"
    if not path.exists():
        pytest.skip("run scripts/fetch_assets.py first")
    return Backbone.from_pretrained(path, dtype="float32")


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    """Writes rows with their own keys as the header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def review_rows(count: int, first: int = 0) -> list[dict[str, str]]:
    """A task that a tiny model can learn: the label follows from one word."""
    kinds = [("good", "positive"), ("bad", "negative")]
    return [
        {"text": f"{i} the film was {'very ' * (i % 4)}{kinds[i % 2][0]}", "label": kinds[i % 2][1]}
        for i in range(first, first + count)
    ]


@pytest.fixture
def run_config(tmp_path: Path, model_directory: Path) -> Path:
    """A whole small run: config, data and model, in a directory of its own."""
    for split, count, first in (("train", 64, 0), ("validation", 16, 64), ("test", 24, 80)):
        write_csv(tmp_path / f"{split}.csv", review_rows(count, first))
    config = tmp_path / "config.yaml"
    config.write_text(f"""
model: {{name_or_path: {model_directory}, dtype: float32, device: cpu}}
data:
  train: {tmp_path}/train.csv
  validation: {tmp_path}/validation.csv
  test: {tmp_path}/test.csv
  template: "{{prompt:4}}review: {{text}}"
  verbalizer: {{negative: " negative", positive: " positive"}}
train:
  output_dir: {tmp_path}/run
  max_steps: 12
  per_device_train_batch_size: 8
  learning_rate: 0.01
  eval_steps: 4
  save_steps: 3
  logging_steps: 2
""")
    return config
