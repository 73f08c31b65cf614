"""What settings come to: the learning rate follows the vocabulary, and the steps follow the rows."""

import pytest
import torch
from families import tiny_backbone

from ptuning.config.sections import TrainConfig
from ptuning.prompts import encoders, initializers
from ptuning.training.recipe import learning_rate, loop_settings, num_steps


def settings(**changes: object) -> TrainConfig:
    return TrainConfig(output_dir="run", **changes)  # type: ignore[arg-type]


def test_the_automatic_rate_grows_with_the_vocabulary() -> None:
    backbone = tiny_backbone("llama")
    encoder = encoders.Embedding(torch.zeros(4, backbone.width))
    before = learning_rate(settings(), encoder, backbone)
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight.mul_(3)
    backbone = type(backbone)(backbone.model, backbone.tokenizer, "tripled")
    assert learning_rate(settings(), encoder, backbone) == pytest.approx(3 * before, rel=1e-5)


def test_the_deviation_is_that_of_a_typical_dimension() -> None:
    vocabulary_VH = 0.2 * torch.randn(5000, 100, generator=torch.Generator().manual_seed(0)) + 7
    vocabulary_VH[:, 3] *= 1000  # a few models have dimensions that are far larger than the rest
    assert initializers.deviation(vocabulary_VH) == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize(
    ("name", "deviations"),
    [("embedding", 1.0), ("residual", 0.1), ("mlp", 0.03), ("lstm", 0.03), ("conditioned", 0.05)],
)
def test_each_encoder_has_its_own_rate(name: str, deviations: float) -> None:
    backbone = tiny_backbone("llama")
    encoder = encoders.build(name, torch.zeros(4, backbone.width))
    expected = deviations * initializers.deviation(backbone.vocabulary_VH)
    assert learning_rate(settings(), encoder, backbone) == pytest.approx(expected)


def test_a_rate_that_is_set_is_taken() -> None:
    backbone = tiny_backbone("llama")
    rate = learning_rate(settings(learning_rate=0.25), encoders.Embedding(torch.zeros(4, backbone.width)), backbone)
    assert rate == loop_settings(settings(), rate, 7).learning_rate == 0.25
    assert loop_settings(settings(), rate, 7).max_steps == 7


@pytest.mark.parametrize(
    ("changes", "batches_per_epoch", "batches_per_step", "expected"),
    [
        ({"max_steps": 7, "num_train_epochs": 2.0}, 100, 1, 7),
        ({"num_train_epochs": 2.5}, 10, 1, 25),
        ({"num_train_epochs": 0.5}, 1, 4, 1),
        ({"num_train_epochs": 3.0}, 10, 4, 8),
        ({}, 18, 1, 300),
        ({}, 1000, 1, 3000),
        ({}, 1000, 2, 1500),
    ],
)
def test_steps_follow_from_the_rows_unless_they_are_set(
    changes: dict, batches_per_epoch: int, batches_per_step: int, expected: int
) -> None:
    assert num_steps(settings(**changes), batches_per_epoch, batches_per_step) == expected
