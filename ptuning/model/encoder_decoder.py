"""Encoder-decoders such as T5: the encoder reads the question, and the decoder answers.

Knows nothing of prompts or training.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ptuning.data import Batch, Coder, Example, Task, collate_pairs
from ptuning.errors import ModelError
from ptuning.model.backbone import Backbone
from ptuning.model.loading import cannot_load


class EncoderDecoderBackbone(Backbone):
    """An encoder-decoder such as T5; its encoder reads the prompt and the question (Lester et al. 2021)."""

    task_type, generation_padding_side = "SEQ_2_SEQ_LM", "right"

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Any encoder-decoder."""
        return bool(model.config.is_encoder_decoder)

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None) -> None:
        super().__init__(model, tokenizer, name)
        if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
            raise ModelError(
                f"{self.name}, whose {type(model).__name__} does not say how its decoder begins",
                "an encoder-decoder such as T5",
                "Choose another model",
            )

    def require_readable(self) -> None:
        """Raises `ModelError` if the decoder begins with a token of the answer, as mBART's does: that tells it."""
        answers = [torch.tensor([ids], device=self.device) for ids in ([3, 4], [5, 6], [7, 8])]
        starts = {int(self.model.prepare_decoder_input_ids_from_labels(labels=each)[0, 0]) for each in answers}
        if len(starts) > 1:
            raise cannot_load(self.name, "its decoder begins with a token of the answer")

    def coder(self, task: Task) -> Coder:
        """The coder that turns the task's rows into examples; each question ends with the end-of-text token."""
        return Coder(task, self.tokenizer, self.max_positions, closes=True)

    def collate(self, examples: Sequence[Example], padding_side: str = "right") -> Batch:
        """Pads examples, questions and answers separately."""
        return collate_pairs(examples, self.pad_id, padding_side)

    def logits(self, embeddings_BTH: Tensor, batch: Batch) -> Tensor:
        """Runs the model: the encoder reads the embeddings, the decoder the answer so far."""
        output = self.model(
            inputs_embeds=embeddings_BTH,
            attention_mask=batch.mask_BT,
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(labels=batch.labels_BT),
            use_cache=False,
        )
        return output.logits[batch.scored_BT].float()

    def generate(self, embeddings_BTH: Tensor, ids_BT: Tensor, mask_BT: Tensor, **settings: Any) -> Tensor:
        """Generates an answer for each row, without the decoder's start token."""
        output_BN = self.model.generate(inputs_embeds=embeddings_BTH, attention_mask=mask_BT, **settings)
        return output_BN[:, self.num_columns_before(ids_BT) :]

    def num_columns_before(self, ids_BT: Tensor) -> int:
        """1, for the decoder's start token."""
        return 1
