"""Every encoder starts at exactly the initial prompt, learns, and comes back from its state to the bit."""

from typing import get_args, get_type_hints

import pytest
import torch

from ptuning.config.run import PromptConfig
from ptuning.errors import ConfigError, PromptError
from ptuning.prompts import encoders

P, H = 5, 12
every_encoder = pytest.mark.parametrize("name", encoders.BY_NAME)


def start(num_virtual_tokens=P, width=H, seed=0):
    return torch.randn(num_virtual_tokens, width, generator=torch.Generator().manual_seed(seed))


def made(encoder):
    """The prompt: of the encoder that reads text, that of some row."""
    if not encoder.reads_text:
        return encoder()
    text_BT = torch.tensor([[True, True, False, True], [False] * 4])
    return encoder(torch.randn(2, 4, H, generator=torch.Generator().manual_seed(8)), text_BT)[0]


def step(encoder, learning_rate=1e-2):
    """One AdamW step on a loss that each number of the prompt takes part in."""
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=learning_rate)
    prompt_PH = made(encoder)
    (prompt_PH * start(*prompt_PH.shape, seed=9)).sum().backward()
    optimizer.step()


@every_encoder
def test_step_0_gives_exactly_the_start(name):
    start_PH = start()
    made_PH = made(encoders.build(name, start_PH))
    assert torch.equal(made_PH, start_PH)
    assert made_PH.dtype == torch.float32


@every_encoder
def test_training_leaves_the_start_itself_alone(name):
    start_PH = start()
    step(encoders.build(name, start_PH))
    assert torch.equal(start_PH, start())


@every_encoder
def test_first_step_changes_every_virtual_token(name):
    encoder = encoders.build(name, start())
    step(encoder)
    assert max(parameter.grad.abs().max() for parameter in encoder.parameters()) > 0
    assert ((made(encoder) - start()).abs().amax(dim=1) > 1e-4).all()


@every_encoder
def test_gradients_reach_every_parameter_once_the_branch_has_opened(name):
    encoder = encoders.build(name, start())
    step(encoder)
    step(encoder)
    silent = [key for key, parameter in encoder.named_parameters() if parameter.grad.abs().max() == 0]
    assert not silent


@every_encoder
def test_state_gives_the_same_bits_whatever_the_new_start(name):
    encoder = encoders.build(name, start())
    step(encoder)
    torch.manual_seed(1)
    other = encoders.build(name, start(seed=1))
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(made(other), made(encoder))


@every_encoder
def test_shape_is_known(name):
    encoder = encoders.build(name, start())
    assert (encoder.num_virtual_tokens, encoder.width) == (P, H) == tuple(made(encoder).shape)


def test_registry_holds_what_a_config_may_name():
    assert tuple(encoders.BY_NAME) == get_args(get_type_hints(PromptConfig)["encoder"])


@pytest.mark.parametrize(
    ("name", "hidden_size", "shapes"),
    [
        ("mlp", None, [(H, H), (H, H), (H, H)]),
        ("mlp", 7, [(7, H), (7, 7), (H, 7)]),
        ("residual", None, [(128, H), (H, 128)]),
        ("residual", 7, [(7, H), (H, 7)]),
        ("lstm", None, [(H, H), (H, H)]),
        ("lstm", 6, [(6, 6), (H, 6)]),
        ("conditioned", None, [(64, H), (64, H), (H, 64)]),
    ],
)
def test_hidden_size_is_respected(name, hidden_size, shapes):
    encoder = encoders.build(name, start(), hidden_size)
    linear = [tuple(module.weight.shape) for module in encoder.modules() if isinstance(module, torch.nn.Linear)]
    assert linear == shapes


@pytest.mark.parametrize(("width", "hidden"), [(H, H), (1024, 1024), (1030, 1024)])
def test_lstm_is_never_wider_than_1024(width, hidden):
    encoder = encoders.build("lstm", start(width=width))
    assert encoder.lstm.bidirectional
    assert 2 * encoder.lstm.hidden_size == encoder.mlp[0].in_features == hidden
    assert encoder.lstm.num_layers == 2


def test_lstm_reads_the_virtual_tokens_as_one_sequence():
    encoder = encoders.build("lstm", start())
    step(encoder)
    before_PH = encoder().detach()
    with torch.no_grad():
        encoder.input_PH[0] += 1
    assert ((encoder() - before_PH).abs().amax(dim=1) > 0).all()


def test_lstm_of_odd_width_is_refused():
    with pytest.raises(ConfigError, match=r"prompt.hidden_size: 7 with encoder lstm; expected an even number"):
        encoders.build("lstm", start(), 7)


def test_conditioned_prompt_depends_on_the_rows_own_text_only():
    torch.manual_seed(0)
    encoder = encoders.build("conditioned", start())
    for _ in range(3):
        step(encoder)
    text_BTH = torch.randn(2, 4, H)
    text_BT = torch.tensor([[True, True, True, True], [True, True, False, False]])
    both_BPH = encoder(text_BTH, text_BT)
    assert (both_BPH[0] - both_BPH[1]).abs().max() > 1e-4
    alone_BPH = encoder(text_BTH[1:, :2], text_BT[1:, :2])
    assert torch.allclose(both_BPH[1:], alone_BPH, atol=1e-6)
    changed_BTH = text_BTH.clone()
    changed_BTH[1, 2:] += 5  # where there is no text
    assert torch.equal(encoder(changed_BTH, text_BT)[1], both_BPH[1])
    changed_BTH[1, 0] += 5
    assert not torch.equal(encoder(changed_BTH, text_BT)[1], both_BPH[1])


def test_conditioned_encoder_comes_back_from_its_weights():
    encoder = encoders.build("conditioned", start(), hidden_size=7)
    step(encoder)
    again = encoders.Conditioned.from_weights(encoder.state_dict())
    assert torch.equal(made(again), made(encoder))
    assert again.queries_PW.shape == (P, 7)
    with pytest.raises(PromptError, match=r"weights prompt_PH .*; expected a conditioned encoder's"):
        encoders.Conditioned.from_weights({"prompt_PH": start()})
