"""A training step never waits for the device, but where the loss is read."""

from typing import Any, ClassVar

import torch
from families import tiny_backbone
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ptuning.config.sections import TrainConfig
from ptuning.data.readers import Row
from ptuning.data.task import Task
from ptuning.prompts import encoders, initializers
from ptuning.training.distributed import accelerator_on
from ptuning.training.graphs import DeviceReads
from ptuning.training.loop import Loop, LoopSettings
from ptuning.training.prompt_steps import PromptSteps

TASK = Task("{prompt:4}review: {text}\nsentiment:", verbalizer={"negative": " negative", "positive": " positive"})
LOGGING_STEPS = 5


def loop_of(forward: str = "auto") -> Loop:
    backbone = tiny_backbone("llama")
    texts = ["the film", "a very dull plot and very bad film was the capital of the film", "bright", "good"] * 4
    rows = [Row({"text": text, "label": ("negative", "positive")[i % 2]}, "row") for i, text in enumerate(texts)]
    examples = backbone.coder(TASK).encode(rows)
    settings = TrainConfig(
        output_dir="", max_steps=20, per_device_train_batch_size=4, learning_rate=1e-2, forward=forward
    )
    accelerator = accelerator_on(torch.device("cpu"))
    steps = PromptSteps(backbone, examples, settings, accelerator)
    encoder = encoders.MLP(initializers.from_vocabulary(backbone.vocabulary_VH, 4), hidden_size=16)
    return Loop(encoder, steps, LoopSettings(20, 1e-2, logging_steps=LOGGING_STEPS), accelerator)


class MethodReads(TorchFunctionMode):
    """Counts the methods that hand a tensor's numbers to Python, some of which are no operators on a CPU."""

    METHODS: ClassVar = {
        getattr(Tensor, name) for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__")
    }

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in self.METHODS
        return func(*args, **(kwargs or {}))


def reads_of_steps(loop: Loop) -> list[int]:
    """How often each step reads the device, of ten behind the first five."""
    steps = loop.steps()
    for _ in range(LOGGING_STEPS):
        next(steps)  # what the model can do is found out by running it
    counts = []
    for _ in range(2 * LOGGING_STEPS):
        with DeviceReads() as reads, MethodReads() as methods:
            next(steps)
        counts.append(len(reads.names) + methods.count)
    return counts


def test_a_step_waits_for_the_device_where_the_loss_is_read() -> None:
    counts = reads_of_steps(loop_of())
    assert counts == [*[0] * (LOGGING_STEPS - 1), 1] * 2


def test_the_reference_path_does_wait() -> None:
    assert min(reads_of_steps(loop_of("splice"))) > 0
