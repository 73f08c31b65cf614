"""How little a decoding says: prompts that are tuned for a task while their decoding is pulled to an unrelated text.

After Khashabi et al. 2022 (prompt waywardness). Knows nothing of how prompts are judged.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ptuning.data import BatchStream, Example, Row, Task
from ptuning.errors import ConfigError, PromptError
from ptuning.evaluation import Table, evaluate
from ptuning.inspection.measures.protocol import Measured
from ptuning.inspection.vocabulary.embeddings import Vocabulary
from ptuning.inspection.vocabulary.neighbours import top
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt, encoders, initializers
from ptuning.training import Loop, LoopSettings, StepWork, accelerator_on, backward_in_parts

NAME = "wayward"
_WEIGHT_DECAY = 0.01
COLUMNS = {
    "pull": "weight of the pull in the loss, which is the mean over virtual tokens of 1 - cosine with the target's "
    "token; None for free training, which starts at random tokens of the vocabulary",
    "accuracy": "share of correct answers on the test rows",
    "accuracy_low": "lower end of its 95 % interval",
    "accuracy_high": "upper end of its 95 % interval",
    "loss": "mean cross-entropy per answer token, in nats",
    "f1": "F1 of the decoding's tokens against the target's tokens, as bags",
    "decoded": "the nearest tokens as text",
}


@dataclass(frozen=True)
class Settings:
    """How all prompts are tuned."""

    max_steps: int = 160
    """Optimizer steps."""
    batch_size: int = 16
    """Rows per step."""
    learning_rate: float = 5e-3
    """Learning rate of AdamW, which falls to 0 linearly."""
    seed: int = 0
    """Seed of the order of rows and of the free prompt's start."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}", "more than 0", "Raise it")


@dataclass(frozen=True, kw_only=True)
class Wayward(Measured):
    """The price of each decoding; the table has a record for each prompt, the free one first."""

    prompts: Sequence[SoftPrompt]
    """The prompts, in the order of the table."""


def wayward(
    prompt: SoftPrompt,
    backbone: Backbone,
    train: Sequence[Row],
    test: Sequence[Row],
    target: str,
    pulls: Sequence[float] = (1.0, 10.0),
    settings: Settings | None = None,
) -> Wayward:
    """Tunes prompts for the task of a prompt, one freely and others pulled to a text.

    Args:
        prompt: A prompt with a task; its embeddings are not used.
        backbone: The base model.
        train: Rows to tune on.
        test: Rows to measure on.
        target: The text that the decoding is pulled to; its tokens are repeated or cut to the number of virtual tokens.
        pulls: Weights of the pull; for each a prompt is tuned that starts at the target's tokens.
        settings: How the prompts are tuned.

    Raises:
        PromptError: When the prompt has no task, or the text has no token.
    """
    if prompt.task is None:
        raise PromptError("a prompt without a task", "one with a template", "Leave wayward out")
    task, own, vocabulary = prompt.task, settings or Settings(), Vocabulary.of(backbone)
    coder, num = backbone.coder(task), prompt.num_virtual_tokens
    target_ids = list(backbone.tokenizer(target, add_special_tokens=False).input_ids)
    target_PH = initializers.from_text(vocabulary.matrix_VH, target_ids, num)
    target_ids = [target_ids[p % len(target_ids)] for p in range(num)]
    free_PH = initializers.from_vocabulary(vocabulary.matrix_VH, num, seed=own.seed)
    trained, tested = coder.encode(train), coder.encode(test)
    records, prompts = [], []
    for pull in (None, *pulls):
        start_PH = free_PH if pull is None else target_PH
        tuned_PH = _tuned(backbone, start_PH, trained, None if pull is None else (target_PH, pull), own)
        metrics = evaluate(backbone, tuned_PH, tested, coder.label_ids)
        ids = top(tuned_PH, vocabulary, 1)[1][:, 0].tolist()
        low, high = metrics.interval
        records.append(
            {
                "pull": pull,
                "accuracy": metrics.accuracy,
                "accuracy_low": low,
                "accuracy_high": high,
                "loss": metrics.loss,
                "f1": _f1(ids, target_ids, vocabulary),
                "decoded": str(backbone.tokenizer.decode(ids)),
            }
        )
        prompts.append(_saved(prompt, task, tuned_PH, initializers.ids_of(vocabulary.matrix_VH, start_PH)))
    how = (
        "Prompts for the same task whose decoding was pulled to an unrelated text, and one that was tuned freely. "
        "Where a pulled prompt is as accurate as the free one, a decoding says nothing about what a prompt does."
    )
    title = "Pulled to an unrelated text"
    return Wayward(name=NAME, title=title, how=how, table=Table(COLUMNS, records), prompts=prompts)


def _tuned(
    backbone: Backbone, start_PH: Tensor, examples: Sequence[Example], goal: tuple[Tensor, float] | None, own: Settings
) -> Tensor:
    """The prompt after its steps, `[P, H]`."""
    torch.manual_seed(own.seed)
    encoder = encoders.Residual(start_PH.clone())
    stream = BatchStream([len(each) for each in examples], own.batch_size, own.seed)

    def work_of(step: int) -> StepWork:
        rows = [examples[i] for i in stream[step]]

        def add_gradients(encoder: nn.Module, scale: float) -> Tensor:
            loss_sum = backward_in_parts(backbone, encoder(), rows, scale)
            if goal is not None:
                target_PH, weight = goal
                (weight * (1 - torch.cosine_similarity(encoder(), target_PH, dim=1)).mean()).backward()
            return loss_sum

        num_label_tokens = sum(len(row.answer_ids) for row in rows)
        return StepWork(num_label_tokens, sum(row.num_text for row in rows), add_gradients)

    settings = LoopSettings(own.max_steps, own.learning_rate, _WEIGHT_DECAY)
    for _ in Loop(encoder, work_of, settings, accelerator_on(backbone.device)).steps():
        pass
    return encoder().detach()


def _saved(prompt: SoftPrompt, task: Task, tuned_PH: Tensor, init_ids: Sequence[int | None]) -> SoftPrompt:
    """A tuned prompt with the task and the model of another."""
    return replace(
        prompt, embeddings_PH=tuned_PH, task=task, weights={}, results={}, init={"token_ids": list(init_ids)}
    )


def _f1(ids: Sequence[int], target_ids: Sequence[int], vocabulary: Vocabulary) -> float:
    """F1 of two bags of tokens; tokens with equal embeddings count as the same."""
    one, other = (Counter(int(vocabulary.same_V[i]) for i in each) for each in (ids, target_ids))
    return 2 * (one & other).total() / (one.total() + other.total())
