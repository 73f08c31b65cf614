"""Skips what the last layer computes for tokens whose logits nobody needs.

After the last layer's keys and values, a token affects nothing but its own logits. Products that treat tokens
independently are therefore computed for the scored tokens only. Knows nothing of prompts.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

_TOKEN_BY_TOKEN = ("q_proj", "o_proj", "mlp")  # the names in most architectures; others run whole


class LastLayerCut:
    """Computes the last layer's products for some tokens only, in one forward pass.

    Args:
        weights: The weights that `token_by_token_weights` returns.
        scored_LW: True at the tokens whose logits are needed; at least one.
    """

    def __init__(self, weights: Sequence[Tensor], scored_LW: Tensor) -> None:
        self._weights: Mapping[int, Tensor] = {id(each): each for each in weights}
        self._shape, self._places = scored_LW.shape, scored_LW.nonzero(as_tuple=True)

    def takes(self, input: Tensor, weight: Tensor) -> bool:
        """Whether the product of this input and weight is needed for the scored tokens only."""
        return id(weight) in self._weights and input.shape[:-1] == self._shape

    def product(self, linear: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`linear` for the scored tokens and zeros for the others: `[L, W, H]` to `[L, W, F]`."""
        scored_1NF = linear(input[self._places][None], weight, bias)
        zeros_LWF = scored_1NF.new_zeros(*self._shape, scored_1NF.shape[-1])
        return zeros_LWF.index_put(self._places, scored_1NF[0])


def token_by_token_weights(model: Any) -> list[Tensor]:
    """The weights of the last layer's linear modules that treat tokens independently.

    Weights shared with another module are left out: all tokens need that module's output.
    """
    layers = decoder_layers(model)
    if layers is None:
        return []
    owners = Counter(id(each) for _, each in model.named_parameters(remove_duplicate=False))
    parts = [each for name, each in layers[-1].named_modules() if name.rpartition(".")[2] in _TOKEN_BY_TOKEN]
    linear = {each for part in parts for each in part.modules() if isinstance(each, nn.Linear)}
    return [each.weight for each in linear if owners[id(each.weight)] == 1]


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """The model's layers, first to last; None unless it has exactly one stack of `num_hidden_layers` layers."""
    num_layers = model.config.get_text_config().num_hidden_layers
    layers = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == num_layers]
    return layers[0] if len(layers) == 1 else None
