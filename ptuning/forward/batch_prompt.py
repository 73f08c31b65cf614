"""The soft prompt of a batch, in each of the forms that the forward pass takes.

Knows nothing of tasks, names or files.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from ptuning.data import Batch, Example
from ptuning.forward.prefix_cache import Prefix
from ptuning.model import Backbone, CausalBackbone


class BatchPrompt(ABC):
    """The soft prompt of some rows; `as_batch_prompt` makes one of what the public functions take."""

    has_prefix_to_run: ClassVar[bool] = False
    """Whether what all its rows begin with can be run, once for all, and has not been."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds."""

    @abstractmethod
    def with_tensors(self, tensors: Sequence[Tensor]) -> "BatchPrompt":
        """The same with other numbers in place of `tensors`."""

    @abstractmethod
    def embeddings(self, backbone: Backbone, batch: Batch) -> Tensor:
        """The virtual tokens' embeddings: `[P, H]` for all rows, or `[B, P, H]`, one a row."""

    @abstractmethod
    def part(self, rows: Sequence[int]) -> "BatchPrompt":
        """That of some of the rows."""

    def shares(self, batch: Batch) -> bool:
        """Whether what the batch's rows begin with has been run, or can be, once for all of them."""
        return False

    def kept(self, backbone: CausalBackbone, batch: Batch) -> "KeptPrompts":
        """The same, what the rows begin with having been run; only where they `shares` it."""
        raise NotImplementedError

    def with_prefix_run(self, backbone: Backbone, ids: Sequence[int], num_rows: int) -> "BatchPrompt":
        """The same, with what all rows begin with run once for many batches, where that can be."""
        return self

    def for_rows(self, backbone: Backbone, examples: Sequence[Example]) -> "BatchPrompt":
        """The same as tensors, made once for all of some rows, which their parts take."""
        return self


@dataclass(frozen=True)
class StaticPrompt(BatchPrompt):
    """One prompt for all rows, of which nothing has been run."""

    has_prefix_to_run = True

    prompt_PH: Tensor
    """Its embeddings."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The embeddings."""
        return (self.prompt_PH,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> "StaticPrompt":
        """With other embeddings."""
        return StaticPrompt(*tensors)

    def embeddings(self, backbone: Backbone, batch: Batch) -> Tensor:
        """`[P, H]`."""
        return self.prompt_PH

    def part(self, rows: Sequence[int]) -> BatchPrompt:
        """Itself."""
        return self

    def shares(self, batch: Batch) -> bool:
        """Whether the rows begin with something."""
        return bool(batch.prefix_ids)

    def kept(self, backbone: CausalBackbone, batch: Batch) -> "KeptPrompts":
        """Runs what the rows begin with."""
        prefix = Prefix.of(backbone, self.prompt_PH, batch.prefix_ids)
        return KeptPrompts.same(self.prompt_PH, prefix, len(batch.ids_BT))

    def with_prefix_run(self, backbone: Backbone, ids: Sequence[int], num_rows: int) -> BatchPrompt:
        """Runs the ids, where the model can keep what that gives."""
        if not ids or not backbone.can_keep_prefix:
            return self
        assert isinstance(backbone, CausalBackbone)
        backbone.require_room(len(ids))
        return KeptPrompts.same(self.prompt_PH, Prefix.of(backbone, self.prompt_PH, ids), num_rows)


@dataclass(frozen=True)
class PromptPerRow(BatchPrompt):
    """A prompt of its own for each row."""

    prompts_BPH: Tensor
    """Their embeddings."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The embeddings."""
        return (self.prompts_BPH,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> "PromptPerRow":
        """With other embeddings."""
        return PromptPerRow(*tensors)

    def embeddings(self, backbone: Backbone, batch: Batch) -> Tensor:
        """`[B, P, H]`."""
        return self.prompts_BPH

    def part(self, rows: Sequence[int]) -> BatchPrompt:
        """Those rows' own."""
        return PromptPerRow(self.prompts_BPH[list(rows)])


@dataclass(frozen=True)
class ConditionedPrompt(BatchPrompt):
    """A prompt that an encoder makes of each row's text."""

    encoder: nn.Module
    """Reads the embeddings `[B, T, H]` and where they are text, `[B, T]`; gives `[B, P, H]`."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The encoder's parameters."""
        return tuple(self.encoder.parameters())

    def with_tensors(self, tensors: Sequence[Tensor]) -> BatchPrompt:
        """Not to be had: `for_rows` gives a prompt whose numbers can be others."""
        raise NotImplementedError

    def embeddings(self, backbone: Backbone, batch: Batch) -> Tensor:
        """`[B, P, H]`."""
        prompts_BPH: Tensor = self.encoder(backbone.embed(batch.ids_BT.clamp(min=0)), batch.text_BT)
        return prompts_BPH

    def part(self, rows: Sequence[int]) -> BatchPrompt:
        """Itself: it reads whatever rows it is given."""
        return self

    def for_rows(self, backbone: Backbone, examples: Sequence[Example]) -> BatchPrompt:
        """What the encoder makes of the rows; it reads all at once, being small."""
        return PromptPerRow(self.embeddings(backbone, backbone.collate(examples).to(backbone.device)))


@dataclass(frozen=True)
class KeptPrompts(BatchPrompt):
    """One soft prompt a row, chosen among several that have been run."""

    prompts: Sequence[Tensor]
    """The K prompts' embeddings, each `[P, H]` with its own P."""
    prefixes: Sequence[Prefix]
    """What was kept of what each one's rows begin with; empty where the model can keep nothing."""
    choice: tuple[int, ...]
    """Which of the K each row has."""

    @classmethod
    def same(cls, prompt_PH: Tensor, prefix: Prefix, num_rows: int) -> "KeptPrompts":
        """One prompt for all rows."""
        return cls([prompt_PH], [prefix], (0,) * num_rows)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The prompts' embeddings, and each one's layers' keys and values."""
        states = [each for prefix in self.prefixes for layer in prefix.layers for each in layer]
        return (*self.prompts, *states)

    def with_tensors(self, tensors: Sequence[Tensor]) -> "KeptPrompts":
        """With other embeddings, keys and values."""
        given = iter(tensors)
        prompts = [next(given) for _ in self.prompts]
        prefixes = [Prefix(tuple((next(given), next(given)) for _ in each.layers), each.ids) for each in self.prefixes]
        return replace(self, prompts=prompts, prefixes=prefixes)

    @property
    def prefix_lengths(self) -> tuple[int, ...]:
        """How many leading tokens of each row have been run."""
        return tuple(len(self.prefixes[k].ids) for k in self.choice)

    def shares(self, batch: Batch) -> bool:
        """Whether each row of a batch begins with its prefix, no position of which is scored."""
        if not self.prefixes or not any(self.prefix_lengths):
            return False
        if any(own < num for own, num in zip(batch.num_unscored, self.prefix_lengths, strict=True)):
            return False
        device, length = batch.ids_BT.device, max(self.prefix_lengths)
        order_BS = batch.mask_BT.argsort(dim=1, descending=True, stable=True)[:, :length]
        chosen = [torch.tensor(self.prefixes[k].ids, dtype=torch.long) for k in self.choice]
        expected_BS = pad_sequence(chosen, batch_first=True).to(device)
        is_run_BS = torch.arange(length, device=device) < torch.tensor(self.prefix_lengths, device=device)[:, None]
        return bool(((batch.ids_BT.gather(1, order_BS) == expected_BS) | ~is_run_BS).all())

    def embeddings(self, backbone: Backbone, batch: Batch) -> Tensor:
        """`[P, H]` where all rows have the same prompt; else each row's, padded behind to the longest: `[B, P, H]`."""
        return self.rows_embeddings

    @property
    def rows_embeddings(self) -> Tensor:
        """The same, which no batch need be known for."""
        if len(self.prompts) == 1:
            return self.prompts[0]
        return pad_sequence(list(self.prompts), batch_first=True)[self._choice_on(self.prompts[0].device)]

    def part(self, rows: Sequence[int]) -> "KeptPrompts":
        """With those rows' choice."""
        return replace(self, choice=tuple(self.choice[row] for row in rows))

    def kept(self, backbone: CausalBackbone, batch: Batch) -> "KeptPrompts":
        """Itself."""
        return self

    def _choice_on(self, device: torch.device) -> Tensor:
        return torch.tensor(self.choice, device=device)

    def spread(self, backbone: CausalBackbone, num_empty: int = 0) -> tuple[DynamicCache, Tensor]:
        """A cache for one forward, `B` rows of the longest prefix's length and `num_empty` more, and its mask `[B, P]`.

        Shorter prefixes are padded in front, so that text follows each directly and a sliding window sees what it
        should.
        """
        length = max(self.prefix_lengths) + num_empty
        some = next(prefix for prefix in self.prefixes if prefix.ids)
        none = tuple((keys[:, :, :0], values[:, :, :0]) for keys, values in some.layers)
        cache, rows_B = backbone.new_cache(), self._choice_on(backbone.device)
        for i, layer in enumerate(zip(*(prefix.layers or none for prefix in self.prefixes), strict=True)):
            keys, values = (_of_rows(each, length, rows_B) for each in zip(*layer, strict=True))
            cache.update(keys, values, i)
        num_padded_B = length - torch.tensor(self.prefix_lengths, device=backbone.device)
        return cache, (torch.arange(length, device=backbone.device) >= num_padded_B[:, None]).long()


Prompt: TypeAlias = Tensor | nn.Module | BatchPrompt
"""A soft prompt as the public functions take it: `[P, H]` for all rows, `[B, P, H]` with one per row, a prompt encoder,
or any `BatchPrompt`."""


def as_batch_prompt(prompt: Prompt) -> BatchPrompt:
    """The prompt in the form that the forward pass takes; an encoder that reads no text is run for it."""
    if isinstance(prompt, BatchPrompt):
        return prompt
    if isinstance(prompt, nn.Module):
        encoder: Any = getattr(prompt, "module", prompt)  # inside what spreads gradients over processes
        if encoder.reads_text:
            return ConditionedPrompt(prompt)
        prompt = prompt()
    assert isinstance(prompt, Tensor)
    return StaticPrompt(prompt) if prompt.ndim == 2 else PromptPerRow(prompt)


def _of_rows(states: Sequence[Tensor], length: int, rows_B: Tensor) -> Tensor:
    """K prompts' keys or values `[1, heads, S, D]` as those of the rows, `[B, heads, length, D]`."""
    if len(states) == 1:  # one for all rows: a view of it
        return repeat(_behind_empty(states[0], length), "1 n s d -> b n s d", b=len(rows_B))
    return torch.cat([_behind_empty(each, length) for each in states])[rows_B]


def _behind_empty(states: Tensor, length: int) -> Tensor:
    """Keys or values padded in front to a length, with 0."""
    return functional.pad(states, (0, 0, length - states.shape[2], 0))
