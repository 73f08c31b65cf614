"""LoRA and all weights, beside a plain loop of PEFT, transformers and torch: the same rows, rate and schedule."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate.utils import set_seed
from families import tiny_backbone
from small import ROWS, TEMPLATE, VERBALIZER, job, rows
from transformers import get_linear_schedule_with_warmup

from ptuning.comparison.protocol import Effort
from ptuning.comparison.weights import LORA_RANK, AllWeights, LoRA
from ptuning.data import BatchStream
from ptuning.model import Backbone

WORDS, NUM_STEPS, BATCH_SIZE = TEMPLATE.partition("}")[2], 25, 8


def ids_of(backbone: Backbone, row: dict[str, str], label: str) -> tuple[list[int], list[int]]:
    asked = backbone.tokenizer(WORDS.format(**row))["input_ids"]
    return asked, backbone.tokenizer(VERBALIZER[label], add_special_tokens=False)["input_ids"]


def batches(backbone: Backbone) -> Iterator[dict[str, torch.Tensor]]:
    """Padded on the right, with the loss on the label's tokens alone."""
    pairs = [ids_of(backbone, row, row["label"]) for row in ROWS["train"]]
    stream = BatchStream([len(asked) + len(answer) for asked, answer in pairs], BATCH_SIZE, 0, False, None)
    for step in range(NUM_STEPS):
        own = [pairs[i] for i in stream[step]]
        most = max(len(asked) + len(answer) for asked, answer in own)
        found: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for asked, answer in own:
            fill = most - len(asked) - len(answer)
            found["input_ids"].append([*asked, *answer, *[0] * fill])
            found["attention_mask"].append([1] * (most - fill) + [0] * fill)
            found["labels"].append([-100] * len(asked) + answer + [-100] * fill)
        yield {name: torch.tensor(values) for name, values in found.items()}


def trained(backbone: Backbone, model: Any, learning_rate: float) -> Any:
    """The plain loop."""
    own = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, NUM_STEPS)
    for batch in batches(backbone):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def scores(backbone: Backbone, model: Any) -> torch.Tensor:
    """The log-probability of each label of each test row."""
    found = []
    for row in ROWS["test"]:
        for label in VERBALIZER:
            asked, answer = ids_of(backbone, row, label)
            log_probs_TV = model(torch.tensor([[*asked, *answer]])).logits[0].log_softmax(dim=1)
            found.append(sum(float(log_probs_TV[len(asked) - 1 + i, token]) for i, token in enumerate(answer)))
    return torch.tensor(found).view(len(ROWS["test"]), len(VERBALIZER))


def model_for(kind: str) -> Any:
    model = tiny_backbone().model.eval()
    if kind == "all_weights":
        return model.requires_grad_(True)
    set_seed(0)
    config = peft.LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("way", [LoRA(), AllWeights()], ids=lambda way: way.name)
def test_it_is_a_plain_loop(
    way: LoRA | AllWeights, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(way), "rate", 0.003)
    settings = {"train__max_steps": NUM_STEPS, "train__per_device_train_batch_size": BATCH_SIZE}
    given = job(backbone, tmp_path, **settings, train__warmup_ratio=0.0)
    fitted = way.fit(type(given)(**{**vars(given), "effort": Effort(num_evaluations=1)}))
    assert fitted.chosen["step"] == str(NUM_STEPS)
    before, plain = scores(backbone, backbone.model), trained(backbone, model_for(way.kind), 0.003)
    found = fitted.label_scores(rows("test"))
    assert (found - before).abs().max() > 0.1  # it learned something
    torch.testing.assert_close(found, scores(backbone, plain.eval()), atol=1e-4, rtol=1e-4)
