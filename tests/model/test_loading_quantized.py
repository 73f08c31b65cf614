"""Models whose files hold quantized weights: loaded as they are, with gradients, and not quantized again."""

from pathlib import Path

import pytest
import torch
from families import tiny_backbone
from transformers import AutoModelForCausalLM

from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.errors import ModelError
from ptuning.forward import objective
from ptuning.model import Backbone


def gradients(backbone: Backbone) -> list[torch.Tensor]:
    """By both paths."""
    texts = ("the film", "a very dull plot", "bright")
    examples = backbone.coder(Task("{prompt:5}the {text} is")).encode(
        [Row({"text": text, "label": " good"}, "row") for text in texts]
    )
    found = []
    for path in ("splice", "auto"):
        prompt_PH = backbone.vocabulary_VH[3:8].clone().requires_grad_()
        objective.loss_sum(backbone, prompt_PH, backbone.collate(examples), path).backward()
        assert prompt_PH.grad is not None
        found.append(prompt_PH.grad)
    return found


def quantized_directory(tmp_path: Path, config: object) -> Path:
    """A tiny llama saved with quantized weights."""
    tiny = tiny_backbone("llama", hidden_size=128, intermediate_size=128)
    tiny.model.save_pretrained(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )
    model.save_pretrained(tmp_path / "small")
    tiny.tokenizer.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def configs() -> dict[str, object]:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import BitsAndBytesConfig, TorchAoConfig

    return {
        "torchao": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
        "bitsandbytes": lambda: BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
    }


@pytest.mark.parametrize("library", ["torchao", "bitsandbytes"])
def test_quantized_model_is_loaded_and_gives_gradients(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    directory = quantized_directory(tmp_path, configs()[library]())
    backbone = Backbone.from_pretrained(directory, dtype="float32", device="cpu")
    splice_PH, shared_PH = gradients(backbone)
    assert splice_PH.norm() > 0
    torch.testing.assert_close(shared_PH, splice_PH, rtol=1e-3, atol=1e-3)
    assert backbone.weights_sha256() == backbone.weights_sha256()
    with pytest.raises(ModelError, match=r"weights are quantized already; .* Set model.quantization to none"):
        Backbone.from_pretrained(directory, device="cpu", quantization="int4")
