"""Skips what the last layer computes for tokens whose logits nobody needs.

After the last layer's keys and values, a token affects nothing but its own logits. Products that treat tokens
independently are therefore computed for the scored tokens only. Knows nothing of prompts.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

_TOKEN_BY_TOKEN = ("q_proj", "o_proj", "mlp")  # the names in most architectures; others run whole


@dataclass(frozen=True, eq=False)
class CutWeight:
    """A weight of the last layer that need not be multiplied with every token."""

    weight: Tensor
    """The weight of a linear module."""
    takes_all: bool = True
    """Whether its input has all tokens, `[L, W, H]`, or the scored ones only, `[1, N, H]`."""
    gives_all: bool = True
    """Whether its output has a place for all tokens, or for the scored ones only."""


class TokenLines(Protocol):
    """Lines of tokens that are run, some of which are scored."""

    @property
    def size(self) -> tuple[int, int]:
        """The number of lines and their width."""

    @property
    def scored_N(self) -> Tensor:
        """The tokens whose logits are needed, counted through all lines."""


class SomeTokens(NamedTuple):
    """The plainest `TokenLines`."""

    size: tuple[int, int]
    scored_N: Tensor


class LastLayerCut:
    """Computes the last layer's products for some tokens only, in one forward pass.

    Args:
        weights: The weights that `token_by_token_weights` returns.
        tokens: What is run.
    """

    def __init__(self, weights: Sequence[CutWeight], tokens: TokenLines) -> None:
        self.weights = {id(each.weight): each for each in weights}
        """The weights that may be cut, by their identity."""
        self._shape, self._scored_N = tokens.size, tokens.scored_N
        self._scored_shape = (1, len(self._scored_N))

    def takes(self, input: Tensor, weight: Tensor) -> bool:
        """Whether the product of this input and weight is needed for the scored tokens only."""
        own = self.weights.get(id(weight))
        return own is not None and input.shape[:-1] == (self._shape if own.takes_all else self._scored_shape)

    def product(self, linear: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`linear` for the scored tokens; zeros for the others where the output has a place for them."""
        own = self.weights[id(weight)]
        if own.takes_all:
            input = input.flatten(0, 1).index_select(0, self._scored_N)[None]
        scored_1NF = linear(input, weight, bias)
        if not own.gives_all:
            return scored_1NF
        zeros = scored_1NF.new_zeros(self._shape[0] * self._shape[1], scored_1NF.shape[-1])
        return zeros.index_copy(0, self._scored_N, scored_1NF[0]).view(*self._shape, -1)


def token_by_token_weights(model: Any) -> list[CutWeight]:
    """The weights of the last layer's linear modules that treat tokens independently.

    Between the first and the last product of a feed-forward network only the scored tokens are kept. Weights shared
    with another module are left out: all tokens need that module's output.
    """
    layers = decoder_layers(model)
    if layers is None:
        return []
    owners = Counter(id(each) for _, each in model.named_parameters(remove_duplicate=False))
    parts = [each for name, each in layers[-1].named_modules() if name.rpartition(".")[2] in _TOKEN_BY_TOKEN]
    found = {id(each.weight): CutWeight(each.weight) for each in parts if isinstance(each, nn.Linear)}
    for module in (module for part in parts for module in part.modules()):
        weights = [each.weight for each in module.children() if isinstance(each, nn.Linear)]
        if all(owners[id(each)] == 1 for each in weights):
            found |= {id(each.weight): each for each in _network(weights)}
    return [each for key, each in found.items() if owners[key] == 1]


def head_weight(model: Any) -> CutWeight | None:
    """The head's weight, whose product has the scored tokens only; None if the head is no linear module."""
    head = model.get_output_embeddings()
    return CutWeight(head.weight, gives_all=False) if isinstance(head, nn.Linear) else None


def _network(weights: Sequence[Tensor]) -> list[CutWeight]:
    """A feed-forward network's weights: those that widen give the scored tokens only, which the last one takes.

    Where they are not such a network, each takes and gives all tokens.
    """
    narrowing = [each for each in weights if each.shape[0] < each.shape[1]]
    widening = [each for each in weights if each.shape[0] > each.shape[1]]
    if len(narrowing) != 1 or not widening or len(widening) + 1 != len(weights):
        return [CutWeight(each) for each in weights]
    return [*(CutWeight(each, gives_all=False) for each in widening), CutWeight(narrowing[0], takes_all=False)]


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """The model's layers, first to last; None unless it has exactly one stack of `num_hidden_layers` layers."""
    num_layers = model.config.get_text_config().num_hidden_layers
    layers = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == num_layers]
    return layers[0] if len(layers) == 1 else None
