"""Causal language models: question and answer are one sequence.

Knows nothing of prompts or training.
"""

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ptuning.data import Batch, Coder, Example, Task, collate, positions
from ptuning.model import capabilities
from ptuning.model.backbone import Backbone
from ptuning.model.kernels import FastKernels, JointPrefix, LastLayerCut, token_by_token_weights
from ptuning.model.loading import cannot_load

_OPTIONAL = ("attention_mask", "position_ids")  # what an architecture may not take: ALiBi models number no positions


class CausalBackbone(Backbone):
    """A causal language model: question and answer are one sequence."""

    task_type, generation_padding_side = "CAUSAL_LM", "left"

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Any model that is no encoder-decoder."""
        return not model.config.is_encoder_decoder

    def require_readable(self) -> None:
        """Raises `ModelError` when tokens see those that come after them, as in an encoder such as BERT."""
        if not self.is_causal:
            raise cannot_load(self.name, "its tokens see those that come after them")

    @cached_property
    def cache_layers(self) -> list[Any]:
        """The layers of the model's key-value cache, empty; no layers where it keeps another state."""
        if getattr(self.model, "_is_stateful", False) or "past_key_values" not in self._accepted:
            return []
        return self.new_cache().layers

    @property
    def supports_prefix_cache(self) -> bool:
        """Whether all layers are plain attention, so that keys and values are all there is to keep of a prefix."""
        kinds = {type(layer) for layer in self.cache_layers}
        return bool(kinds) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}

    @cached_property
    def window(self) -> int | None:
        """How many positions the shortest-sighted layer sees; None where all see everything."""
        windows = [each.sliding_window for each in self.cache_layers if each.is_sliding]
        local = getattr(self.model.config, "window_size", None)  # GPT-Neo's, of which its cache knows nothing
        return min([*windows, *([local] if isinstance(local, int) else [])], default=None)

    def sees_all(self, num_tokens: int) -> bool:
        """Whether every layer sees so many tokens."""
        return self.window is None or num_tokens <= self.window

    @cached_property
    def supports_packing(self) -> bool:
        """Whether rows may be laid end to end in one line, each blind to the others, behind a kept prefix."""
        takes_positions = "position_ids" in self._accepted  # each row of a line begins anew
        return self.supports_prefix_cache and takes_positions and capabilities.supports_block_masks(self)

    @cached_property
    def supports_joint_prefix(self) -> bool:
        """Whether a prefix may be run in the same pass as the rows behind it."""
        return self.supports_packing and capabilities.supports_joint_prefix(self)

    @cached_property
    def is_causal(self) -> bool:
        """Whether no token sees those that come after it."""
        return capabilities.is_causal(self)

    @cached_property
    def ignores_left_padding(self) -> bool:
        """Whether rows may be continued together, padded in front."""
        return capabilities.ignores_left_padding(self)

    @cached_property
    def ignores_padding_gaps(self) -> bool:
        """Whether padding may stand between a kept prefix and the rest of a row."""
        return capabilities.ignores_padding_gaps(self)

    @cached_property
    def _token_by_token_weights(self) -> list[Tensor]:
        """What the last layer need not multiply with tokens that are not scored; nothing where it must."""
        weights = token_by_token_weights(self.model)
        return weights if weights and capabilities.last_layer_can_be_cut(self, weights) else []

    def fast_kernels(self, scored_BT: Tensor | None = None, joint_prefix: JointPrefix | None = None) -> FastKernels:
        """A mode for one forward pass in this thread; nothing of it is seen by others that run the model.

        Args:
            scored_BT: True at the tokens whose logits are needed, where others' are not; None: all.
            joint_prefix: What stands before the keys and values of every row; None: nothing.
        """
        if scored_BT is None or not self._token_by_token_weights:
            return FastKernels(joint_prefix)
        return FastKernels(joint_prefix, LastLayerCut(self._token_by_token_weights, scored_BT))

    def coder(self, task: Task) -> Coder:
        """Turns the task's rows into examples."""
        return Coder(task, self.tokenizer, self.max_positions)

    def collate(self, examples: Sequence[Example], padding_side: str = "right") -> Batch:
        """Pads examples, question and answer in one sequence."""
        return collate(examples, self.pad_id, padding_side)

    def logits(self, embeddings_BTH: Tensor, batch: Batch) -> Tensor:
        """The model's own forward over embeddings, positions counted in each row."""
        return self.scored_logits(
            batch.scored_BT,
            inputs_embeds=embeddings_BTH,
            attention_mask=batch.mask_BT,
            position_ids=positions(batch.mask_BT),
            use_cache=False,
        )

    def scored_logits(self, scored_BT: Tensor, **inputs: Any) -> Tensor:
        """Logits `[N, V]` fp32 at the positions that are true, computed only there where the architecture can."""
        if "logits_to_keep" in self._accepted:
            return self.run(**inputs, logits_to_keep=scored_BT).logits.float()
        return self.run(**inputs).logits[scored_BT].float()

    def run(self, **inputs: Any) -> Any:
        """The model's forward, without those optional inputs that the architecture does not take."""
        taken = {key: each for key, each in inputs.items() if key in self._accepted or key not in _OPTIONAL}
        with self.in_turn():
            return self.model(**taken)

    def fill(self, **inputs: Any) -> None:
        """Runs the model for the keys and values alone, which `past_key_values` takes up; no logits are made."""
        self.run(**inputs, logits_to_keep=torch.empty(0, dtype=torch.long, device=self.device))

    def new_cache(self) -> DynamicCache:
        """An empty key-value cache for one forward; a forward changes it, so each needs its own."""
        return DynamicCache(config=self.model.config)

    def generate(self, embeddings_BTH: Tensor, ids_BT: Tensor, mask_BT: Tensor, **settings: Any) -> Tensor:
        """Writes after each row; its own words count as written where an option looks at that (repetition penalty)."""
        is_text_BT = (mask_BT > 0) & (ids_BT >= 0)
        with self.in_turn():
            written_BN = self.model.generate(
                inputs_embeds=embeddings_BTH,
                input_ids=torch.where(is_text_BT, ids_BT, self._filling_id),
                attention_mask=mask_BT,
                **settings,
            )
        return written_BN[:, self.num_columns_before(ids_BT) :]

    @property
    def generates_from_embeddings(self) -> bool:
        """Whether transformers can write with the model from embeddings, and not from ids only."""
        return "inputs_embeds" in inspect.signature(self.model.prepare_inputs_for_generation).parameters

    @cached_property
    def _filling_id(self) -> int:
        """What stands for virtual tokens and padding where an option looks at the words: none that an answer holds."""
        special = [self.pad_id, *self.tokenizer.all_special_ids]
        return next((i for i in special if i not in self.end_ids), self.pad_id)
