"""The soft prompt of a batch, in each form that the forward pass takes.

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

from ptuning.data import Batch, Example, moved
from ptuning.forward.prefix_cache import Prefix
from ptuning.model import Backbone, CausalBackbone


class BatchPrompt(ABC):
    """The soft prompt of some rows; `as_batch_prompt` builds one from what the public functions accept."""

    has_prefix_to_run: ClassVar[bool] = False
    """Whether all rows share a prefix that can be run once and has not been run yet."""

    @abstractmethod
    def embeddings(self, backbone: Backbone, batch: Batch) -> Tensor:
        """The virtual tokens' embeddings: `[P, H]` for all rows, or `[B, P, H]` with one prompt per row."""

    @abstractmethod
    def part(self, rows: Sequence[int]) -> "BatchPrompt":
        """The prompt of some of the rows, given by their indices."""

    def shares(self, batch: Batch) -> bool:
        """Whether the rows of the batch begin with a prefix that has been run, or can be run once for all of them."""
        return False

    def kept(self, backbone: CausalBackbone, batch: Batch) -> "KeptPrompts":
        """The same prompt with its prefix run. Requires `shares(batch)`."""
        raise AssertionError("a prompt without a prefix keeps none")

    def with_prefix_run(self, backbone: Backbone, ids: Sequence[int], num_rows: int) -> "BatchPrompt":
        """The same prompt with the prefix `ids` run once for many batches, if the model can keep it."""
        return self

    @abstractmethod
    def for_rows(self, backbone: Backbone, examples: Sequence[Example]) -> "TensorPrompt":
        """The same prompt as tensors, computed once for all examples; `part` selects from them."""


class TensorPrompt(BatchPrompt):
    """A prompt that is tensors, which others can take the place of."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors that it holds."""

    @abstractmethod
    def with_tensors(self, tensors: Sequence[Tensor]) -> "TensorPrompt":
        """The same prompt with other values for `tensors`, in the same order."""

    def with_prefix_run(self, backbone: Backbone, ids: Sequence[int], num_rows: int) -> "TensorPrompt":
        """The same prompt with the prefix `ids` run once for many batches, if the model can keep it."""
        return self

    def for_rows(self, backbone: Backbone, examples: Sequence[Example]) -> "TensorPrompt":
        """Itself."""
        return self


@dataclass(frozen=True)
class StaticPrompt(TensorPrompt):
    """One prompt for all rows, whose prefix has not been run."""

    has_prefix_to_run = True

    prompt_PH: Tensor
    """Its embeddings."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The embeddings."""
        return (self.prompt_PH,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> "StaticPrompt":
        """The same prompt with other embeddings."""
        (prompt_PH,) = tensors
        return StaticPrompt(prompt_PH)

    def embeddings(self, backbone: Backbone, batch: Batch) -> Tensor:
        """`[P, H]`."""
        return self.prompt_PH

    def part(self, rows: Sequence[int]) -> BatchPrompt:
        """The prompt itself."""
        return self

    def shares(self, batch: Batch) -> bool:
        """Whether the rows share a prefix."""
        return bool(batch.prefix_ids)

    def kept(self, backbone: CausalBackbone, batch: Batch) -> "KeptPrompts":
        """Runs the prefix of the rows."""
        prefix = Prefix.of(backbone, self.prompt_PH, batch.prefix_ids)
        return KeptPrompts.same(self.prompt_PH, prefix, len(batch))

    def with_prefix_run(self, backbone: Backbone, ids: Sequence[int], num_rows: int) -> TensorPrompt:
        """Runs the prefix if the model can keep its keys and values."""
        if not ids or not backbone.can_keep_prefix:
            return self
        assert isinstance(backbone, CausalBackbone)
        backbone.require_room(len(ids))
        return KeptPrompts.same(self.prompt_PH, Prefix.of(backbone, self.prompt_PH, ids), num_rows)


@dataclass(frozen=True)
class PromptPerRow(TensorPrompt):
    """One prompt per row."""

    prompts_BPH: Tensor
    """Their embeddings."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The embeddings."""
        return (self.prompts_BPH,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> "PromptPerRow":
        """The same prompts with other embeddings."""
        (prompts_BPH,) = tensors
        return PromptPerRow(prompts_BPH)

    def embeddings(self, backbone: Backbone, batch: Batch) -> Tensor:
        """`[B, P, H]`."""
        return self.prompts_BPH

    def part(self, rows: Sequence[int]) -> BatchPrompt:
        """The prompts of those rows."""
        return PromptPerRow(self.prompts_BPH[list(rows)])


@dataclass(frozen=True)
class ConditionedPrompt(BatchPrompt):
    """A prompt that an encoder computes from each row's text."""

    encoder: nn.Module
    """Takes embeddings `[B, T, H]` and a mask of the text, `[B, T]`; returns `[B, P, H]`."""

    def embeddings(self, backbone: Backbone, batch: Batch) -> Tensor:
        """`[B, P, H]`."""
        prompts_BPH: Tensor = self.encoder(backbone.embed(batch.ids_BT.clamp(min=0)), batch.text_BT)
        return prompts_BPH

    def part(self, rows: Sequence[int]) -> BatchPrompt:
        """The prompt itself: the encoder reads whatever rows it is given."""
        return self

    def for_rows(self, backbone: Backbone, examples: Sequence[Example]) -> TensorPrompt:
        """Runs the encoder on all examples at once; it is small enough for that."""
        return PromptPerRow(self.embeddings(backbone, backbone.collate(examples).to(backbone.device)))


@dataclass(frozen=True)
class KeptPrompts(TensorPrompt):
    """One soft prompt per row, chosen from K prompts whose prefixes have been run."""

    prompts: Sequence[Tensor]
    """The embeddings of the K prompts, each `[P, H]` with its own P."""
    prefixes: Sequence[Prefix]
    """The kept prefix of each prompt; empty if the model cannot keep prefixes."""
    choice: tuple[int, ...]
    """The index of each row's prompt, from 0 to K - 1."""

    @classmethod
    def same(cls, prompt_PH: Tensor, prefix: Prefix, num_rows: int) -> "KeptPrompts":
        """One prompt for all rows."""
        return cls([prompt_PH], [prefix], (0,) * num_rows)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The prompts' embeddings, then the keys and values of each prefix, layer by layer."""
        states = [each for prefix in self.prefixes for layer in prefix.layers for each in layer]
        return (*self.prompts, *states)

    def with_tensors(self, tensors: Sequence[Tensor]) -> "KeptPrompts":
        """The same prompts with other embeddings, keys and values."""
        rest = iter(tensors)
        prompts = [next(rest) for _ in self.prompts]
        prefixes = [Prefix(tuple((next(rest), next(rest)) for _ in each.layers), each.ids) for each in self.prefixes]
        return replace(self, prompts=prompts, prefixes=prefixes)

    @property
    def prefix_lengths(self) -> tuple[int, ...]:
        """The number of leading tokens of each row that have been run."""
        return tuple(len(self.prefixes[k].ids) for k in self.choice)

    def shares(self, batch: Batch) -> bool:
        """Whether each row of the batch begins with its prompt's prefix, and no prefix position is scored."""
        if not self.prefixes or not any(self.prefix_lengths):
            return False
        prefixes = [self.prefixes[k].ids for k in self.choice]
        return all(
            len(row.ids) > len(ids) and tuple(row.ids[: len(ids)]) == ids
            for row, ids in zip(batch.examples, prefixes, strict=True)
        )

    def embeddings(self, backbone: Backbone, batch: Batch) -> Tensor:
        """`[P, H]` if there is one prompt; else `[B, P, H]`, shorter prompts padded on the right."""
        return self.rows_embeddings

    @property
    def rows_embeddings(self) -> Tensor:
        """What `embeddings` returns; it depends on no batch."""
        if len(self.prompts) == 1:
            return self.prompts[0]
        return pad_sequence(list(self.prompts), batch_first=True)[self._choice_on(self.prompts[0].device)]

    def part(self, rows: Sequence[int]) -> "KeptPrompts":
        """The same prompts, for some of the rows."""
        return replace(self, choice=tuple(self.choice[row] for row in rows))

    def kept(self, backbone: CausalBackbone, batch: Batch) -> "KeptPrompts":
        """The prompts themselves: their prefixes have been run."""
        return self

    def _choice_on(self, device: torch.device) -> Tensor:
        return moved(torch.tensor(self.choice), device)

    def spread(self, backbone: CausalBackbone, num_empty: int = 0) -> tuple[DynamicCache, Tensor]:
        """Builds a key-value cache with each row's prefix, for one forward pass.

        Shorter prefixes are padded on the left. The text then follows each prefix directly, and a sliding window covers
        the right tokens.

        Args:
            backbone: The frozen model.
            num_empty: The number of empty positions before the longest prefix.

        Returns:
            The cache, `B` rows of `S` positions (`num_empty` and the longest prefix), and its mask `[B, S]`: 1 where a
            position holds a prefix token.
        """
        length = max(self.prefix_lengths) + num_empty
        nonempty = next(prefix for prefix in self.prefixes if prefix.ids)
        empty_layers = tuple((keys[:, :, :0], values[:, :, :0]) for keys, values in nonempty.layers)
        cache, choice_B = backbone.new_cache(), self._choice_on(backbone.device)
        for i, layer in enumerate(zip(*(prefix.layers or empty_layers for prefix in self.prefixes), strict=True)):
            keys, values = (_expanded_to_rows(each, length, choice_B) for each in zip(*layer, strict=True))
            cache.update(keys, values, i)
        num_padded_B = length - moved(torch.tensor(self.prefix_lengths), backbone.device)
        return cache, (torch.arange(length, device=backbone.device) >= num_padded_B[:, None]).long()


Prompt: TypeAlias = Tensor | nn.Module | BatchPrompt
"""A soft prompt as the public functions accept it: `[P, H]` for all rows, `[B, P, H]` with one per row, a prompt
encoder, or any `BatchPrompt`."""


def as_batch_prompt(prompt: Prompt) -> BatchPrompt:
    """Converts a prompt to the form that the forward pass takes; an encoder that reads no text is run here."""
    if isinstance(prompt, BatchPrompt):
        return prompt
    if isinstance(prompt, nn.Module):
        encoder: Any = getattr(prompt, "module", prompt)  # DistributedDataParallel wraps it
        if encoder.reads_text:
            return ConditionedPrompt(prompt)
        prompt = prompt()
    assert isinstance(prompt, Tensor)
    return StaticPrompt(prompt) if prompt.ndim == 2 else PromptPerRow(prompt)


def _expanded_to_rows(states: Sequence[Tensor], length: int, choice_B: Tensor) -> Tensor:
    """Keys or values of K prompts, each `[1, heads, S, D]`, expanded to one entry per row: `[B, heads, length, D]`."""
    if len(states) == 1:  # one prompt for all rows: a view is enough
        return repeat(_padded_on_left(states[0], length), "1 n s d -> b n s d", b=len(choice_B))
    return torch.cat([_padded_on_left(each, length) for each in states])[choice_B]


def _padded_on_left(states: Tensor, length: int) -> Tensor:
    """Keys or values padded with zeros on the left to `length` positions."""
    return functional.pad(states, (0, 0, length - states.shape[2], 0))
