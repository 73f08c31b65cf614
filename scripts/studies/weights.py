"""What a study compares soft prompts with: PEFT's prompts, LoRA, and all weights.

PEFT's prompts are its own modules, initialised by it; ptuning's forward pass gives the loss and the gradient of PEFT's,
in less time. Knows nothing of tasks, loops or files.
"""

from collections.abc import Sequence
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from ptuning.data import Example, with_answer
from ptuning.evaluation import RowScores
from ptuning.model import Backbone
from ptuning.prompts import PromptEncoder

LORA_RANK = 8


def peft_encoder(kind: str, backbone: Backbone, num_virtual_tokens: int) -> PromptEncoder:
    """PEFT's own trainable module for a prompt; its call gives `[P, H]`.

    Args:
        kind: `peft_prompt_tuning` (from the vocabulary, which is better than at random) or `peft_p_tuning` (an MLP).
        backbone: The frozen model.
        num_virtual_tokens: P.
    """
    shared: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": num_virtual_tokens}
    config: peft.PromptLearningConfig
    if kind == "peft_prompt_tuning":
        config = peft.PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **shared)
    else:
        config = peft.PromptEncoderConfig(encoder_hidden_size=backbone.width, **shared)
    model = peft.get_peft_model(backbone.model, config)
    encoder = model.prompt_encoder["default"]
    return _PeftPrompt(encoder, num_virtual_tokens, backbone.width).float()


class _PeftPrompt(PromptEncoder):
    """PEFT's module, called with the indices of all virtual tokens."""

    def __init__(self, encoder: nn.Module, num_virtual_tokens: int, width: int) -> None:
        super().__init__(torch.empty(num_virtual_tokens, width))
        self.encoder = encoder
        self.register_buffer("indices_P", torch.arange(num_virtual_tokens))

    def forward(self) -> Tensor:
        prompt_PH: Tensor = self.encoder(self.indices_P)
        return prompt_PH


class Weights:
    """A language model that is trained itself: by LoRA on all linear layers, or all of it.

    LoRA's frozen weights are bfloat16; all weights are float32, with autocast to bfloat16.

    Args:
        name_or_path: The model.
        kind: `lora` or `all_weights`.
        pad_id: What shorter rows are filled with.
        device: Where it runs.
    """

    def __init__(self, name_or_path: str, kind: str, pad_id: int, device: torch.device) -> None:
        dtype = torch.bfloat16 if kind == "lora" else torch.float32
        model: Any = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype)
        if kind == "lora":
            config = peft.LoraConfig(
                r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            model = peft.get_peft_model(model, config)
        self.model, self._pad_id, self._device = model.to(device), pad_id, device
        self._autocast = kind == "all_weights"
        self.trained = nn.ParameterList(each for each in model.parameters() if each.requires_grad)
        """The parameters that are trained."""

    def loss_sum(self, examples: Sequence[Example]) -> Tensor:
        """Cross-entropy summed over the answers' tokens, in nats."""
        logits_NV, targets_N, _ = self._logits(examples)
        return functional.cross_entropy(logits_NV, targets_N, reduction="sum")

    @torch.no_grad()
    def score_rows(
        self, examples: Sequence[Example], label_ids: Sequence[Sequence[int]], batch_size: int = 50
    ) -> RowScores:
        """As `ptuning.evaluation.score_rows`."""
        parts = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
        if not label_ids:
            log_probs, correct = zip(*map(self._answers, parts), strict=True)
            return RowScores(torch.cat(log_probs).cpu(), torch.cat(correct).cpu(), None)
        labels_NC = torch.cat([self._labels(part, label_ids) for part in parts]).cpu()
        own_N = torch.tensor([example.label for example in examples])
        return RowScores(labels_NC.gather(1, own_N[:, None])[:, 0], labels_NC.argmax(1) == own_N, labels_NC)

    def _labels(self, examples: Sequence[Example], label_ids: Sequence[Sequence[int]]) -> Tensor:
        """Log-probability of every label behind every row, `[B, C]`."""
        if all(len(ids) == 1 for ids in label_ids):
            logits_BV, _, _ = self._logits([with_answer(each, list(label_ids[0])) for each in examples])
            return logits_BV.log_softmax(1)[:, [ids[0] for ids in label_ids]]
        return torch.stack(
            [self._answers([with_answer(each, list(ids)) for each in examples])[0] for ids in label_ids], dim=1
        )

    def _answers(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Log-probability of each row's answer, `[B]`, and whether each of its tokens is the most likely one."""
        logits_NV, targets_N, rows_N = self._logits(examples)
        token_log_probs_N = -functional.cross_entropy(logits_NV, targets_N, reduction="none")
        zeros_B = token_log_probs_N.new_zeros(len(examples))
        num_wrong_B = zeros_B.index_add(0, rows_N, (logits_NV.argmax(1) != targets_N).float())
        return zeros_B.index_add(0, rows_N, token_log_probs_N), num_wrong_B == 0

    def _logits(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits fp32 of the answers' tokens, `[N, V]`, the tokens, and their rows; rows are padded on the left."""
        whole = [[*example.ids, *example.answer_ids] for example in examples]
        most = max(map(len, whole))
        ids_BT = torch.tensor([[self._pad_id] * (most - len(ids)) + ids for ids in whole], device=self._device)
        seen_BT = torch.tensor([[0] * (most - len(ids)) + [1] * len(ids) for ids in whole], device=self._device)
        causal_TT = torch.ones(most, most, dtype=torch.bool, device=self._device).tril()
        itself_TT = torch.eye(most, dtype=torch.bool, device=self._device)  # so that padding sees something: no NaN
        mask_BTT = causal_TT & (seen_BT[:, None].bool() | itself_TT)
        num_kept = 1 + max(len(example.answer_ids) for example in examples)
        kept_K = torch.arange(most - num_kept, most, device=self._device)  # as a number torch copies the head B times
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            logits_BKV = self.model(
                input_ids=ids_BT,
                attention_mask=mask_BTT[:, None],
                position_ids=(seen_BT.cumsum(1) - 1).clamp(min=0),
                logits_to_keep=kept_K,
            ).logits
        places = [
            (b, num_kept - 1 - len(example.answer_ids) + i)
            for b, example in enumerate(examples)
            for i in range(len(example.answer_ids))
        ]
        rows, columns = zip(*places, strict=True)
        targets_N = torch.tensor([i for example in examples for i in example.answer_ids], device=self._device)
        return logits_BKV[list(rows), list(columns)].float(), targets_N, torch.tensor(rows, device=self._device)
