"""Causal language models, which read question and answer as one sequence.

Knows nothing of prompts or training.
"""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ptuning.data import Batch, Coder, Example, Task, collate, positions
from ptuning.errors import ModelError
from ptuning.model import capabilities
from ptuning.model.backbone import Backbone
from ptuning.model.capabilities import is_capable
from ptuning.model.kernels import (
    CutWeight,
    JointPrefix,
    LastLayerCut,
    TokenLines,
    attends_by_name,
    fast_kernels,
    head_weight,
    token_by_token_weights,
)
from ptuning.model.loading import cannot_load

_OPTIONAL = ("attention_mask", "position_ids")  # inputs that some architectures lack: ALiBi needs no position ids


class CausalBackbone(Backbone):
    """A causal language model, which reads question and answer as one sequence."""

    task_type, generation_padding_side = "CAUSAL_LM", "left"

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Any model that is not an encoder-decoder."""
        return not model.config.is_encoder_decoder

    def require_readable(self) -> None:
        """Raises `ModelError` if tokens see later tokens, as in an encoder such as BERT, or layers read their ids."""
        if not is_capable(self, capabilities.reads_embeddings):
            raise cannot_load(self.name, "its layers also read the tokens' ids, and virtual tokens have none")
        if not self.is_causal:
            raise cannot_load(self.name, "its tokens see those that come after them")

    def require_trainable(self) -> None:
        """Raises `ModelError` if the gradient does not reach the embeddings as it should."""
        if not is_capable(self, capabilities.passes_gradients):
            raise ModelError(
                f"model {self.name}, whose backward pass does not agree with its forward pass",
                "a model whose gradients are right",
                "Take another model, or another version of transformers",
            )

    @cached_property
    def cache_layers(self) -> list[Any]:
        """The empty layers of the model's key-value cache; no layers if the model keeps another kind of state."""
        if getattr(self.model, "_is_stateful", False) or "past_key_values" not in self._accepted:
            return []
        return self.new_cache().layers

    @property
    def supports_prefix_cache(self) -> bool:
        """Whether all layers are plain attention, so keys and values are the whole state after a prefix."""
        kinds = {type(layer) for layer in self.cache_layers}
        return bool(kinds) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}

    @cached_property
    def window(self) -> int | None:
        """The shortest attention window of any layer, in positions; None if every layer sees all positions."""
        windows = [each.sliding_window for each in self.cache_layers if each.is_sliding]
        local = getattr(self.model.config, "window_size", None)  # GPT-Neo's, which its cache does not show
        return min([*windows, *([local] if isinstance(local, int) else [])], default=None)

    def sees_all(self, num_tokens: int) -> bool:
        """Whether `num_tokens` tokens fit into every layer's attention window."""
        return self.window is None or num_tokens <= self.window

    @cached_property
    def supports_packing(self) -> bool:
        """Whether rows can be packed end to end after a kept prefix, without seeing each other."""
        takes_positions = "position_ids" in self._accepted  # positions restart for each packed row
        return self.supports_prefix_cache and takes_positions and is_capable(self, capabilities.supports_block_masks)

    @cached_property
    def supports_joint_prefix(self) -> bool:
        """Whether a prefix can be run in the same pass as the rows after it."""
        return self.supports_packing and is_capable(self, capabilities.supports_joint_prefix)

    @cached_property
    def is_causal(self) -> bool:
        """Whether no token sees later tokens."""
        return is_capable(self, capabilities.is_causal)

    @cached_property
    def ignores_left_padding(self) -> bool:
        """Whether left padding changes nothing, so rows of different lengths can be generated together."""
        return is_capable(self, capabilities.ignores_left_padding)

    @cached_property
    def ignores_padding_gaps(self) -> bool:
        """Whether there may be padding between a kept prefix and the rest of a row."""
        return is_capable(self, capabilities.ignores_padding_gaps)

    @cached_property
    def _token_by_token_weights(self) -> list[CutWeight]:
        """The last layer's weights whose products are needed for scored tokens only; none if all tokens need them."""
        weights = token_by_token_weights(self.model)
        return weights if weights and is_capable(self, capabilities.can_cut_last_layer) else []

    @property
    def capabilities(self) -> dict[str, bool]:
        """What the model can do, by name: it decides which path is taken. What is not known yet is found out."""
        return {
            **super().capabilities,
            "is_causal": self.is_causal,
            "ignores_left_padding": self.generates_from_embeddings and self.ignores_left_padding,
            "ignores_padding_gaps": self.ignores_padding_gaps,
            "supports_prefix_cache": self.supports_prefix_cache,
            "supports_packing": self.supports_packing,
            "supports_joint_prefix": self.supports_joint_prefix,
            "cuts_last_layer": bool(self._token_by_token_weights),
            "cuts_head": self._head_weight is not None,
        }

    @cached_property
    def _head_weight(self) -> CutWeight | None:
        """The head's weight, if the head alone can leave out the tokens that are not scored."""
        weight = head_weight(self.model)
        return weight if weight is not None and is_capable(self, capabilities.can_cut_head) else None

    @property
    def scores_in_row_order(self) -> bool:
        """Whether `logits_of` returns the logits of the scored tokens alone: on CPUs, if the architecture allows it."""
        return self.device.type == "cpu" and self._head_weight is not None

    def fast_kernels(
        self,
        tokens: TokenLines | None = None,
        joint_prefix: JointPrefix | None = None,
        cuts_head: bool = False,
    ) -> AbstractContextManager[Any]:
        """A context for one forward pass in this thread; other threads that run the model do not notice it.

        Args:
            tokens: The tokens that are run, and which of them are scored; None: the logits of all are needed.
            joint_prefix: The prefix put before the keys and values of every row; None: no prefix.
            cuts_head: Whether logits are `[1, N, V]`, of the scored tokens alone. Requires `scores_in_row_order`.
        """
        is_on_cpu = self.device.type == "cpu"  # elsewhere, launching kernels costs more than the cut saves
        head = [self._head_weight] if cuts_head and self._head_weight else []
        cut = None
        if is_on_cpu and tokens is not None and (head or self._token_by_token_weights):
            cut = LastLayerCut([*self._token_by_token_weights, *head], tokens)
        return fast_kernels(joint_prefix, cut, attends_by_name=attends_by_name(self.model), has_linear=is_on_cpu)

    def coder(self, task: Task) -> Coder:
        """The coder that turns the task's rows into examples."""
        return Coder(task, self.tokenizer, self.max_positions)

    def collate(self, examples: Sequence[Example], padding_side: str = "right") -> Batch:
        """Pads examples, question and answer in one sequence."""
        return collate(examples, self.pad_id, padding_side)

    def logits(self, embeddings_BTH: Tensor, batch: Batch) -> Tensor:
        """Runs the model over whole rows; positions are counted within each row."""
        return self.scored_logits(
            batch.scored_BT,
            inputs_embeds=embeddings_BTH,
            attention_mask=batch.mask_BT,
            position_ids=positions(batch.mask_BT),
            use_cache=False,
        )

    def scored_logits(self, scored_BT: Tensor, **inputs: Any) -> Tensor:
        """Logits `[N, V]` fp32 where `scored_BT` is true; not computed elsewhere if the architecture allows it."""
        if "logits_to_keep" in self._accepted:
            return self.run(**inputs, logits_to_keep=scored_BT).logits.float()
        return self.run(**inputs).logits[scored_BT].float()

    def logits_of(
        self, tokens: TokenLines, places_LK: Tensor, joint_prefix: JointPrefix | None = None, **inputs: Any
    ) -> Tensor:
        """Logits fp32 of the scored tokens of lines.

        Args:
            tokens: The tokens that are run, L lines of them.
            places_LK: K places in each line, among them those of all scored tokens.
            joint_prefix: The prefix put before the keys and values of every row; None: no prefix.
            inputs: The model's inputs.

        Returns:
            `[N, V]` in row order if `scores_in_row_order`, else `[L K, V]`, at every place of `places_LK`.
        """
        cuts_head = self.scores_in_row_order
        with self.fast_kernels(tokens, joint_prefix, cuts_head):
            if cuts_head:
                return self.run(**inputs).logits[0].float()
            if "logits_to_keep" in self._accepted:
                return self.run(**inputs, logits_to_keep=places_LK).logits.flatten(0, 1).float()
            return self.run(**inputs).logits.take_along_dim(places_LK[..., None], dim=1).flatten(0, 1).float()

    def run(self, **inputs: Any) -> Any:
        """Runs the model, leaving out optional inputs that the architecture does not accept."""
        accepted = {key: each for key, each in inputs.items() if key in self._accepted or key not in _OPTIONAL}
        with self.in_turn():
            return self.model(**accepted)

    def fill(self, **inputs: Any) -> None:
        """Runs the model only to fill the cache in `past_key_values`; no logits are computed."""
        self.run(**inputs, logits_to_keep=torch.empty(0, dtype=torch.long, device=self.device))

    def new_cache(self) -> DynamicCache:
        """An empty key-value cache. A forward pass changes its cache, so each pass needs a new one."""
        return DynamicCache(config=self.model.config)

    def passing_cache(self) -> DynamicCache | None:
        """A key-value cache that keeps nothing, for whole rows without a mask; None if the model has other states.

        Without any cache, transformers would look for packed rows in the positions, and wait for the device.
        """
        return _PassingCache(config=self.model.config) if self.supports_prefix_cache else None

    def generate(self, embeddings_BTH: Tensor, ids_BT: Tensor, mask_BT: Tensor, **settings: Any) -> Tensor:
        """Generates after each row. Options that look at earlier tokens, such as repetition penalty, see its words."""
        is_text_BT = (mask_BT > 0) & (ids_BT >= 0)
        with self.in_turn():
            output_BN = self.model.generate(
                inputs_embeds=embeddings_BTH,
                input_ids=torch.where(is_text_BT, ids_BT, self._neutral_id),
                attention_mask=mask_BT,
                **settings,
            )
        return output_BN[:, self.num_columns_before(ids_BT) :]

    @property
    def generates_from_embeddings(self) -> bool:
        """Whether transformers can generate from input embeddings with this model, and not only from ids."""
        return "inputs_embeds" in inspect.signature(self.model.prepare_inputs_for_generation).parameters

    @cached_property
    def _neutral_id(self) -> int:
        """Stands for virtual tokens and padding when an option looks at ids: a special token that answers lack."""
        special = [self.pad_id, *self.tokenizer.all_special_ids]
        return next((i for i in special if i not in self.end_ids), self.pad_id)


class _PassingCache(DynamicCache):
    """Hands keys and values on and keeps none."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The same keys and values."""
        return key_states, value_states
