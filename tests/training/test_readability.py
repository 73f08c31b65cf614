"""A pull to tokens: its gradient is that of the distance, and a strong one ends at tokens."""

from pathlib import Path

import pytest
import torch
from families import tiny_backbone

from ptuning.config import RunConfig
from ptuning.errors import ConfigError
from ptuning.training.readability import TokenPull, nearest_ids
from ptuning.training.run import train


def drawn(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, 16, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_token_is_found_in_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary_VH = drawn(50)
    monkeypatch.setattr("ptuning.training.readability._CHUNK", 7)
    assert nearest_ids(vocabulary_VH, vocabulary_VH * 3 + 1e-3).tolist() == list(range(50))


def test_the_gradient_is_that_of_loss_and_distance() -> None:
    pull, leaf_PH, other_PH = TokenPull(drawn(50), 2.0), drawn(4, 1).requires_grad_(), drawn(4, 1).requires_grad_()
    pull(leaf_PH).square().sum().backward()
    (other_PH.square().sum() + 2.0 * pull.distance(other_PH)).backward()
    torch.testing.assert_close(leaf_PH.grad, other_PH.grad)
    leaf_PH.grad = None
    leaf_PH.square().sum().backward()  # nothing is left on the parameter
    torch.testing.assert_close(leaf_PH.grad, 2 * leaf_PH.detach())


@pytest.mark.parametrize("limit", ["null", "40", "auto"])
@pytest.mark.parametrize("encoder", ["embedding", "residual"])
def test_a_pulled_prompt_ends_nearer_to_tokens(run_config: Path, tmp_path: Path, encoder: str, limit: str) -> None:
    def distance(weight: float) -> float:
        given = [f"--train.readability={weight}", f"--train.output_dir={tmp_path}/{weight}"]
        given += [f"--prompt.encoder={encoder}", f"--train.max_batch_tokens={limit}", "--prompt.init=random"]
        config = RunConfig.from_yaml(run_config, given)
        pull = TokenPull(tiny_backbone().vocabulary_VH, 1.0)
        return float(pull.distance(train(config).prompt.embeddings_PH))

    assert distance(100.0) < distance(0.0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--train.readability=-1"], "train.readability: -1.0; expected at least 0"),
        (
            ["--train.readability=1", "--prompt.encoder=conditioned"],
            "train.readability: 1.0 with prompt.encoder: conditioned; expected an encoder whose prompt is the same",
        ),
    ],
)
def test_a_pull_that_cannot_be_is_refused(run_config: Path, given: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        RunConfig.from_yaml(run_config, given)
