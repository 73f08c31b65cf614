"""The trainable part: small modules whose `forward` computes the virtual tokens' embeddings.

Knows nothing of language models or of where the virtual tokens are placed. All encoders but `Conditioned` compute one
prompt for all rows, `forward() -> [P, H]`. `Conditioned` reads each row's text first, `forward(text_BTH, text_BT) ->
[B, P, H]`. Every encoder starts at exactly `start_PH`: it adds to its initial embeddings a branch whose last layer is
zero at first.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ptuning.errors import ConfigError, PromptError

MAX_LSTM_WIDTH = 1024  # at H = 3072, an LSTM of full width has hundreds of millions of weights and is no better


class PromptEncoder(nn.Module):
    """Computes a soft prompt: its `forward` returns the virtual tokens' embeddings in fp32.

    Args:
        start_PH: The initial embeddings, `[P, H]` fp32; what `forward` returns before training.
    """

    reads_text: ClassVar[bool] = False
    """Whether `forward` takes the rows' text and returns one prompt per row."""
    rate_in_deviations: ClassVar[float] = 0.1
    """The learning rate that suits it, in units of the vocabulary's standard deviation."""

    def __init__(self, start_PH: Tensor) -> None:
        super().__init__()
        self.num_virtual_tokens, self.width = start_PH.shape

    @property
    def base_PH(self) -> Tensor:
        """The prompt `[P, H]`; for an encoder that reads text, the prompt that it adds to."""
        prompt_PH: Tensor = self()
        return prompt_PH

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> Self:
        """Builds the encoder from its `state_dict`; only encoders that read text are saved with their weights.

        Raises:
            PromptError: If the weights are not a `state_dict` of this encoder.
        """
        raise PromptError(
            f"the weights of a {cls.__name__} encoder", "weights of an encoder that reads text", "Give its prompt"
        )


class Embedding(PromptEncoder):
    """Free vectors (Lester et al. 2021): every value of the prompt is a parameter."""

    rate_in_deviations = 1.0

    def __init__(self, start_PH: Tensor) -> None:
        super().__init__(start_PH)
        self.prompt_PH = nn.Parameter(start_PH.clone())

    def forward(self) -> Tensor:
        """The parameters themselves, `[P, H]`."""
        return self.prompt_PH


class MLP(PromptEncoder):
    """A three-layer network shared by all virtual tokens, P-tuning's "MLP" (as in NeMo and PEFT), plus an anchor.

    Args:
        start_PH: The initial embeddings.
        hidden_size: Width of the two hidden layers; None: H.
    """

    rate_in_deviations = 0.03

    def __init__(self, start_PH: Tensor, hidden_size: int | None = None) -> None:
        super().__init__(start_PH)
        hidden = hidden_size or self.width
        self.register_buffer("anchor_PH", start_PH.clone())
        self.input_PH = nn.Parameter(start_PH.clone())
        self.network = nn.Sequential(
            nn.Linear(self.width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            _zero(nn.Linear(hidden, self.width)),
        ).to(start_PH.device)

    def forward(self) -> Tensor:
        """Anchor + network(input), `[P, H]`."""
        return self.anchor_PH + self.network(self.input_PH)


class LSTM(PromptEncoder):
    """A 2-layer bidirectional LSTM over the virtual tokens and a 2-layer MLP (Liu et al. 2021), plus an anchor.

    Args:
        start_PH: The initial embeddings.
        hidden_size: Width of the LSTM's output, both directions together, and of the MLP; even. None: H, at most 1024.
    """

    rate_in_deviations = 0.03

    def __init__(self, start_PH: Tensor, hidden_size: int | None = None) -> None:
        super().__init__(start_PH)
        hidden = hidden_size or min(self.width, MAX_LSTM_WIDTH)
        if hidden % 2:
            raise ConfigError(f"prompt.hidden_size: {hidden} with encoder lstm", "an even number", "Use an even width")
        self.register_buffer("anchor_PH", start_PH.clone())
        self.input_PH = nn.Parameter(start_PH.clone())
        self.lstm = nn.LSTM(self.width, hidden // 2, num_layers=2, bidirectional=True, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), _zero(nn.Linear(hidden, self.width)))
        self.to(start_PH.device)

    def forward(self) -> Tensor:
        """Anchor + MLP(LSTM(input)), `[P, H]`."""
        hidden_PW, _ = self.lstm(self.input_PH)
        return self.anchor_PH + self.mlp(hidden_PW)


class Residual(PromptEncoder):
    """Free vectors plus a bottleneck network applied to each (residual prompt tuning, Razdaibiedina et al. 2023).

    Args:
        start_PH: The initial embeddings.
        hidden_size: Width of the bottleneck; None: 128.
    """

    def __init__(self, start_PH: Tensor, hidden_size: int | None = None) -> None:
        super().__init__(start_PH)
        hidden = hidden_size or 128
        self.prompt_PH = nn.Parameter(start_PH.clone())
        self.network = nn.Sequential(
            nn.Linear(self.width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, self.width),
            _zero(nn.LayerNorm(self.width)),
        ).to(start_PH.device)

    def forward(self) -> Tensor:
        """Prompt + network(prompt), `[P, H]`."""
        return self.prompt_PH + self.network(self.prompt_PH)


class Conditioned(PromptEncoder):
    """A small model that reads each row's text and computes one prompt per row.

    P learned queries attend to the frozen input embeddings of the text through a narrow bottleneck. Their output is
    added to a base prompt that all rows share. The last layer is zero at first, so every row starts at the base prompt.

    Args:
        start_PH: The initial embeddings of the base prompt.
        hidden_size: Width W of the bottleneck; None: 64.
    """

    reads_text = True
    rate_in_deviations = 0.05

    def __init__(self, start_PH: Tensor, hidden_size: int | None = None) -> None:
        super().__init__(start_PH)
        hidden = hidden_size or 64
        self.prompt_PH = nn.Parameter(start_PH.clone())
        self.queries_PW = nn.Parameter(torch.randn(self.num_virtual_tokens, hidden))
        self.norm = nn.LayerNorm(self.width)
        self.keys, self.values = nn.Linear(self.width, hidden), nn.Linear(self.width, hidden)
        self.output = nn.Sequential(nn.LayerNorm(hidden), nn.GELU(), _zero(nn.Linear(hidden, self.width)))
        self.to(start_PH.device)

    def forward(self, text_BTH: Tensor, text_BT: Tensor) -> Tensor:
        """Each row's prompt.

        Args:
            text_BTH: The frozen input embeddings of the rows.
            text_BT: True where a row has text.

        Returns:
            `[B, P, H]` fp32.
        """
        text_BTH = self.norm(nn.functional.pad(text_BTH.float(), (0, 0, 1, 0)))  # an empty token, for rows without text
        seen_B1T = rearrange(nn.functional.pad(text_BT, (1, 0), value=True), "b t -> b 1 t")
        queries_BPW = repeat(self.queries_PW, "p w -> b p w", b=len(text_BTH))
        read_BPW = nn.functional.scaled_dot_product_attention(
            queries_BPW, self.keys(text_BTH), self.values(text_BTH), attn_mask=seen_B1T
        )
        return self.prompt_PH + self.output(read_BPW)

    @property
    def base_PH(self) -> Tensor:
        """The base prompt, `[P, H]`."""
        return self.prompt_PH

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> Self:
        """Builds the encoder from its `state_dict`; raises `PromptError` if the weights do not fit."""
        try:
            start_PH = weights["prompt_PH"].to("meta")  # no memory yet: small tensors may name layers of any size
            with torch.device("meta"):
                encoder = cls(start_PH, weights["queries_PW"].shape[1])
            encoder.load_state_dict(dict(weights), assign=True)
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise PromptError(
                f"weights {', '.join(weights)[:200]} ({error})", "a conditioned encoder's", "Save or copy it again"
            ) from error
        return encoder


BY_NAME: dict[str, type[Any]] = {
    "embedding": Embedding,
    "mlp": MLP,
    "lstm": LSTM,
    "residual": Residual,
    "conditioned": Conditioned,
}


def build(name: str, start_PH: Tensor, hidden_size: int | None = None) -> PromptEncoder:
    """Builds the encoder that a config names; with `hidden_size` None it has its default width."""
    width = {} if hidden_size is None else {"hidden_size": hidden_size}
    encoder: PromptEncoder = BY_NAME[name](start_PH, **width)
    return encoder


def of_weights(name: str, weights: Mapping[str, Tensor]) -> PromptEncoder:
    """Builds the named encoder from its `state_dict`; raises `PromptError` if the weights do not fit."""
    if name not in BY_NAME:
        raise PromptError(f"an encoder named {name!r}", f"one of {', '.join(BY_NAME)}", "Upgrade ptuning")
    encoder: PromptEncoder = BY_NAME[name].from_weights(weights)
    return encoder


def _zero(layer: nn.Linear | nn.LayerNorm) -> nn.Module:
    """Sets a layer's weight and bias to zero, so its output is zero before training."""
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    return layer
