"""Leaves out what the last layer computes for tokens whose logits nobody needs.

Behind the last layer's keys and values a token matters to nothing but its own logits, so the modules that take each
token by itself are given the scored tokens alone. Knows nothing of prompts.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

_TOKEN_BY_TOKEN = ("q_proj", "o_proj", "mlp")  # by the names that most architectures give them; others run whole


@contextmanager
def only_scored(model: Any, scored_LW: Tensor) -> Iterator[None]:
    """While it lasts, the last layer's query, output and feed-forward modules run on the scored tokens alone.

    Args:
        model: A decoder whose next forward pass reads `scored_LW.shape` tokens.
        scored_LW: True at the tokens whose logits are needed, one at least.
    """

    def take(module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        (states_LWH,) = arguments
        return (states_LWH[scored_LW][None],)

    def put(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        return (_whole(output[0], scored_LW), *output[1:]) if isinstance(output, tuple) else _whole(output, scored_LW)

    with ExitStack() as hooks:
        for module in _modules(model):
            hooks.callback(module.register_forward_pre_hook(take).remove)
            hooks.callback(module.register_forward_hook(put).remove)
        yield


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """The model's layers, first to last; None where it has several stacks of so many, or none."""
    num_layers = model.config.get_text_config().num_hidden_layers
    layers = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == num_layers]
    return layers[0] if len(layers) == 1 else None


def _whole(states_1NH: Tensor, scored_LW: Tensor) -> Tensor:
    """The scored tokens' states among zeros."""
    whole_LWH = states_1NH.new_zeros(*scored_LW.shape, states_1NH.shape[-1])
    return whole_LWH.index_put(scored_LW.nonzero(as_tuple=True), states_1NH[0])


def _modules(model: Any) -> list[nn.Module]:
    """The last layer's modules that take each token by itself, none of which holds another."""
    layers = decoder_layers(model)
    if layers is None:
        return []
    named = layers[-1].named_modules()
    found = [each for name, each in named if name.rpartition(".")[2] in _TOKEN_BY_TOKEN]
    return [each for each in found if len(inspect.signature(each.forward).parameters) == 1]
