"""Says what a run is about to do, before it begins.

Knows nothing of how it is done.
"""

from collections import Counter
from collections.abc import Iterator

from ptuning.config import RunConfig
from ptuning.prompts import PromptEncoder
from ptuning.training.inputs import Inputs
from ptuning.training.loop import LoopSettings

_MOST_LABELS = 12  # that are counted in a line


def lines_of_plan(
    config: RunConfig, inputs: Inputs, encoder: PromptEncoder, how: LoopSettings, batches_per_step: int
) -> Iterator[str]:
    """Lines on the base model, the prompt, the rows and the steps.

    Args:
        config: The run.
        inputs: What it trains with.
        encoder: What is trained.
        how: How steps are made.
        batches_per_step: Batches that all processes together read in a step.
    """
    backbone, size = inputs.backbone, config.train.per_device_train_batch_size * batches_per_step
    precision = str(backbone.dtype).removeprefix("torch.")
    yield f"base: {backbone.name}, {precision} on {backbone.device}, frozen"
    trained = sum(each.numel() for each in encoder.parameters())
    saved = (
        sum(each.numel() for each in encoder.state_dict().values()) if encoder.reads_text else encoder.base_PH.numel()
    )
    yield (
        f"prompt: {encoder.num_virtual_tokens} virtual tokens, {config.prompt.encoder} encoder, {trained:,} trained "
        f"parameters; saved as {4 * saved / 1000:,.0f} kB"
    )
    for split, rows in inputs.rows.items():
        yield f"{split}: {len(rows):,} rows{_labels(config, inputs, split)}"
    yield f"steps: {how.max_steps:,} of {size} rows, rate {how.learning_rate:.3g}"


def told_duration(seconds: float) -> str:
    """A time for people: 40 s, 5 min, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _labels(config: RunConfig, inputs: Inputs, split: str) -> str:
    """How many rows each label has, the commonest first."""
    task = config.data.task
    if not task.is_classification:
        return ""
    counts = Counter(row.values[task.label_column] for row in inputs.rows[split]).most_common()
    told = ", ".join(f"{label} {count:,}" for label, count in counts[:_MOST_LABELS])
    return f": {told}{', ...' if len(counts) > _MOST_LABELS else ''}"
