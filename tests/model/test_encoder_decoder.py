"""T5: the prompt stands before the encoder's text; everything that a causal model does works, and PEFT agrees."""

import json
from pathlib import Path

import peft
import pytest
import torch
from families import tiny_backbone, tiny_tokenizer
from safetensors.torch import load_file
from transformers import MBartConfig, MBartForConditionalGeneration

import ptuning
from ptuning.cli import main as cli
from ptuning.config.run import RunConfig
from ptuning.data.examples import Example
from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.errors import ModelError, PromptError
from ptuning.forward import objective
from ptuning.forward.paths import label_logits
from ptuning.forward.splice import splice
from ptuning.inference.prompted_lm import PromptedLM
from ptuning.model import Backbone
from ptuning.model.encoder_decoder import EncoderDecoderBackbone
from ptuning.prompts.soft_prompt import SoftPrompt
from ptuning.training.run import train

TASK = ptuning.Task("{prompt:4}review: {text}", verbalizer={"negative": " negative", "positive": " positive"})
ROWS = [{"text": text} for text in ("the film was good", "bad", "a very dull plot and a bad film in the capital", "")]


@pytest.fixture(scope="module")
def t5() -> Backbone:
    """A tiny T5."""
    return tiny_backbone("t5")


@pytest.fixture
def t5_config(run_config: Path, tmp_path: Path, t5: Backbone) -> Path:
    """The small run on a T5."""
    directory = tmp_path / "tiny-t5"
    t5.model.save_pretrained(directory)
    t5.tokenizer.save_pretrained(directory)
    settings = run_config.read_text()
    model = settings.split("name_or_path: ")[1].split(",")[0]
    run_config.write_text(settings.replace(model, str(directory)))
    return run_config


def prompt_for(t5: Backbone, seed: int = 0) -> SoftPrompt:
    drawn = torch.randn(4, t5.width, generator=torch.Generator().manual_seed(seed)) * t5.vocabulary_VH.std() * 2
    return SoftPrompt(drawn, TASK, t5.name, t5.fingerprint, task_type=t5.task_type)


def test_question_and_answer_go_to_their_sides(t5):
    assert isinstance(t5, EncoderDecoderBackbone)
    (example,) = t5.coder(TASK).encode([Row({"text": "good", "label": "positive"}, "row")])
    assert example.ids[:4] == [-1, -2, -3, -4]
    assert example.ids[-1] == t5.tokenizer.eos_token_id
    batch = t5.collate([example, Example([-1, 5, 1], [7, 8])])
    assert batch.ids_BT.shape == (2, len(example.ids))
    assert batch.labels_BT.tolist() == [[*example.answer_ids, -100], [7, 8]]
    assert batch.targets_N.tolist() == [*example.answer_ids, 7, 8]


def test_run_trains_resumes_and_is_used_from_the_command_line(t5_config: Path, tmp_path: Path, capsys) -> None:
    overrides = ["--train.max_steps=60", "--train.learning_rate=0.3", "--train.eval_steps=20"]
    result = train(RunConfig.from_yaml(t5_config, overrides))
    baseline, tuned = result.metrics["results"].values()
    assert tuned["loss"] < baseline["loss"] - 0.15  # a tiny T5 scales its logits down: it cannot be surer
    assert train(RunConfig.from_yaml(t5_config, overrides), resume=True).metrics == result.metrics
    capsys.readouterr()
    commands = (["evaluate", "--baseline"], ["predict", "--input", "the film was good"], ["inspect", "--top-k", "2"])
    told = []
    for name, *options in commands:
        assert cli.main([name, str(result.directory), *options, "--dtype", "float32", "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0]["results"]["soft prompt"]["loss"] == pytest.approx(tuned["loss"], abs=1e-4)
    assert set(told[1]["answers"][0]["probabilities"]) == {"negative", "positive"}
    assert len(told[2]["geometry"]["table"]["records"]) == 4


@pytest.mark.parametrize("encoder", ["embedding", "mlp", "lstm", "residual", "conditioned"])
def test_every_encoder_learns(t5_config: Path, encoder: str) -> None:
    options = [f"--prompt.encoder={encoder}", "--train.max_steps=30", "--train.learning_rate=0.03"]
    baseline, tuned = train(RunConfig.from_yaml(t5_config, options)).metrics["results"].values()
    assert tuned["loss"] < baseline["loss"]


def test_labels_are_scored_whole(t5):
    lm = PromptedLM(t5, {"p": prompt_for(t5)})
    label_ids = t5.coder(TASK).label_ids
    for row, answer in zip(ROWS, lm.classify(ROWS), strict=True):
        ids = [*range(-1, -5, -1), *t5.tokenizer(f"review: {row['text']}").input_ids]
        with torch.no_grad():
            scores = [
                float(
                    objective.answer_log_probs(t5, lm.prompts["p"].embeddings_PH, t5.collate([Example(ids, each)]))[0]
                )
                for each in label_ids
            ]
        assert list(answer.probabilities.values()) == pytest.approx(
            torch.tensor(scores).softmax(dim=0).tolist(), abs=1e-5
        )


def test_many_prompts_stream_and_stop(t5):
    lm = PromptedLM(t5, {"a": prompt_for(t5), "b": prompt_for(t5, seed=1)})
    names = ["a", "b", "b", "a"]
    alone = [lm.generate([row], name, max_new_tokens=6)[0] for row, name in zip(ROWS, names, strict=True)]
    assert lm.generate(ROWS, names, max_new_tokens=6) == alone
    told = [""] * 4
    for piece in lm.generate(ROWS, names, max_new_tokens=6, stream=True):
        told[piece.row] += piece.text
    assert told == alone
    stop = alone[0][1:3]
    assert lm.generate(ROWS[:1], "a", max_new_tokens=6, stop_strings=[stop]) == [alone[0].partition(stop)[0]]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_generates_and_scores_the_same_with_our_prompt(t5, tmp_path):
    prompt = prompt_for(t5)
    directory = prompt.save(tmp_path / "prompt")
    written = json.loads((directory / "adapter_config.json").read_text())
    assert (written["task_type"], written["num_transformer_submodules"]) == ("SEQ_2_SEQ_LM", 1)
    assert load_file(directory / "adapter_model.safetensors")["prompt_embeddings"].shape == (4, t5.width)
    theirs = peft.PeftModel.from_pretrained(tiny_backbone("t5").model, directory)
    lm = PromptedLM(t5, {"p": SoftPrompt.load(directory)})
    for row in ROWS:
        ids_1T = torch.tensor([t5.tokenizer(f"review: {row['text']}").input_ids])
        mask = torch.ones_like(ids_1T)
        ids_1N = theirs.generate(input_ids=ids_1T, attention_mask=mask, max_new_tokens=6)
        assert lm.generate([row], max_new_tokens=6) == [t5.tokenizer.decode(ids_1N[0], skip_special_tokens=True)]
        with torch.no_grad():
            logits_1AV = theirs(input_ids=ids_1T, attention_mask=mask, labels=torch.tensor([[7, 1]])).logits
            batch = t5.collate([Example([-1, -2, -3, -4, *ids_1T[0].tolist()], [7, 1])])
            assert (label_logits(t5, prompt.embeddings_PH, batch) - logits_1AV[0]).abs().max() < 1e-4


def test_prompt_for_one_family_is_refused_by_the_other(t5, backbone):
    with pytest.raises(PromptError, match="a prompt for SEQ_2_SEQ_LM for tiny-llama, which is CAUSAL_LM"):
        PromptedLM(backbone, {"p": prompt_for(t5)}, allow_other_base=True)


def test_shared_prefix_is_refused(t5):
    batch = t5.collate([Example([-1, 5, 1], [7])])
    with pytest.raises(ModelError, match="shared_prefix with tiny-t5; expected a causal model"):
        label_logits(t5, torch.zeros(1, t5.width), batch, "shared_prefix")
    assert torch.equal(label_logits(t5, torch.zeros(1, 32), batch), splice(t5, torch.zeros(1, 32), batch))


def test_the_order_of_labels_changes_nothing():
    backbone = tiny_backbone("t5")
    words = {"good": " good", "bad": " very bad", "dull": " dull"}
    prompt_PH = torch.randn(3, backbone.width, generator=torch.Generator().manual_seed(0))
    found = []
    for labels in (words, dict(reversed(words.items()))):
        task = Task("{prompt:3}review: {text}", verbalizer=labels)
        lm = PromptedLM(backbone, {"it": SoftPrompt(prompt_PH, task, task_type=backbone.task_type)})
        found.append(lm.classify([{"text": "a bright film"}, {"text": "the plot was dull"}]))
    for one, other in zip(*found, strict=True):
        assert one.label == other.label
        assert one.probabilities == pytest.approx(other.probabilities)


def test_model_whose_decoder_begins_with_the_answer_is_refused(tmp_path):
    tokenizer = tiny_tokenizer("$A </s>")
    size = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    size |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": len(tokenizer)}
    MBartForConditionalGeneration(MBartConfig(**size, pad_token_id=2, eos_token_id=1)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be loaded \(its decoder begins with a token of the answer\)"):
        Backbone.from_pretrained(tmp_path, device="cpu")
