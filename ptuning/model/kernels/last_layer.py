"""Leaves out what the last layer computes for tokens whose logits nobody needs.

Behind the last layer's keys and values a token matters to nothing but its own logits, so products that take each token
by itself are computed for the scored tokens alone. Knows nothing of prompts.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

_TOKEN_BY_TOKEN = ("q_proj", "o_proj", "mlp")  # by the names that most architectures give them; others run whole


class LastLayerCut:
    """The last layer's products for some tokens alone, for one forward pass.

    Args:
        weights: Those of `token_by_token_weights`.
        scored_LW: True at the tokens whose logits are needed, one at least.
    """

    def __init__(self, weights: Sequence[Tensor], scored_LW: Tensor) -> None:
        self._weights: Mapping[int, Tensor] = {id(each): each for each in weights}
        self._shape, self._places = scored_LW.shape, scored_LW.nonzero(as_tuple=True)

    def takes(self, input: Tensor, weight: Tensor) -> bool:
        """Whether a product with these is needed for the scored tokens alone."""
        return id(weight) in self._weights and input.shape[:-1] == self._shape

    def product(self, linear: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`linear` of the scored tokens, among zeros: `[L, W, F]` of `[L, W, H]`."""
        found_1NF = linear(input[self._places][None], weight, bias)
        whole_LWF = found_1NF.new_zeros(*self._shape, found_1NF.shape[-1])
        return whole_LWF.index_put(self._places, found_1NF[0])


def token_by_token_weights(model: Any) -> list[Tensor]:
    """The weights of the last layer's linear modules that take each token by itself.

    Those that another module has too are left out: what that one computes is needed for all tokens.
    """
    layers = decoder_layers(model)
    if layers is None:
        return []
    owners = Counter(id(each) for _, each in model.named_parameters(remove_duplicate=False))
    parts = [each for name, each in layers[-1].named_modules() if name.rpartition(".")[2] in _TOKEN_BY_TOKEN]
    linear = {each for part in parts for each in part.modules() if isinstance(each, nn.Linear)}
    return [each.weight for each in linear if owners[id(each.weight)] == 1]


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """The model's layers, first to last; None where it has several stacks of so many, or none."""
    num_layers = model.config.get_text_config().num_hidden_layers
    layers = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == num_layers]
    return layers[0] if len(layers) == 1 else None
