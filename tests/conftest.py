"""Tiny random models of several architectures, and the real model where it has been downloaded."""

import csv
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a hub look-up fails at once
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models gain nothing from threads; child processes inherit it

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from ptuning.backbone import Backbone

REPOSITORY = Path(__file__).parent.parent
ASSETS = REPOSITORY / "assets"
WORDS = [
    "a",
    "good",
    "bad",
    "film",
    "plot",
    "was",
    "very",
    "dull",
    "and",
    "bright",
    "the",
    "capital",
    "of",
    "is",
    "in",
    "review",
    "sentiment",
    "positive",
    "negative",
]
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
FAMILIES: dict[str, dict] = {
    "llama": {**_SMALL, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "qwen3": {**_SMALL, "num_key_value_heads": 2, "head_dim": 8},
    "gemma3_text": {**_SMALL, "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6,
                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "opt": {**_SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 96},
    "gpt_neox": _SMALL,
}  # fmt: skip


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few words, a begin-of-text and an end-of-text token, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    for word in WORDS:
        pieces = list(f"Ġ{word}")
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if "".join(pair) not in vocabulary:
                merges.append(pair)
                vocabulary["".join(pair)] = len(vocabulary)
            pieces = ["".join(pair), *pieces[2:]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant:{% endif %}"
    )
    return fast


def tiny_backbone(family: str = "llama", seed: int = 0, **changes: object) -> Backbone:
    """A tiny random model of a family; weights large enough that rows differ clearly."""
    tokenizer = tiny_tokenizer()
    settings = {
        **FAMILIES[family],
        "vocab_size": len(tokenizer),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    config = CONFIG_MAPPING[family](**{**settings, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return Backbone.of(model, tokenizer, f"tiny-{family}")


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """A tiny llama."""
    return tiny_backbone()


@pytest.fixture(scope="session", params=FAMILIES)
def any_backbone(request: pytest.FixtureRequest) -> Backbone:
    """A tiny model of each family."""
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


def review_rows(count: int) -> list[dict[str, str]]:
    """A task that a tiny model can learn: the label follows from one word."""
    kinds = [("good", "positive"), ("bad", "negative")]
    return [
        {"text": f"{i} the film was {'very ' * (i % 4)}{kinds[i % 2][0]}", "label": kinds[i % 2][1]}
        for i in range(count)
    ]


@pytest.fixture
def run_config(tmp_path: Path, model_directory: Path) -> Path:
    """A whole small run: config, data and model, in a directory of its own."""
    for split, count in (("train", 64), ("validation", 16), ("test", 24)):
        write_csv(tmp_path / f"{split}.csv", review_rows(count))
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
