"""The most tokens that a run reads at once, found as it goes where the config says auto; and its error without memory.

Knows nothing of how rows are read, or of what is gathered from them.
"""

import logging
from collections.abc import Callable
from typing import Literal, TypeVar

from ptuning.config import RunConfig
from ptuning.errors import OutOfMemoryError, TrainingError
from ptuning.model import release_cached_memory

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class TokenLimit:
    """The most tokens that this process reads at once.

    Args:
        setting: `train.max_batch_tokens`: a number that stays as it is; None: no limit; auto: none until a batch does
            not fit into memory.
    """

    def __init__(self, setting: int | Literal["auto"] | None) -> None:
        self.is_auto = setting == "auto"
        self.num_tokens: int | None = None if setting == "auto" else setting

    @property
    def found(self) -> int | None:
        """What auto has found, for a checkpoint; None if it found nothing, or does not look."""
        return self.num_tokens if self.is_auto else None

    def go_on_from(self, found: int | None) -> None:
        """Starts from what an earlier part of the run found, if this run looks for a limit."""
        if self.is_auto:
            self.num_tokens = found

    def run(self, work: Callable[[int | None], Result], longest: int) -> Result:
        """Does some work under the limit; with auto, halves the limit and does the work again when memory runs out.

        Args:
            work: Takes the limit. It starts anew each time it is called, and leaves nothing behind when it fails.
            longest: The tokens of the longest row. A row cannot be cut in two, so the work gets no lower limit.

        Raises:
            OutOfMemoryError: Without auto; or when one row alone does not fit, or a lower limit would split no batch.
        """
        while True:
            limit = self._with_room_for(longest)
            try:
                return work(limit)
            except OutOfMemoryError as error:
                failed = error
                if not self.is_auto or not self._is_lowered_to(failed.num_tokens // 2, failed.num_rows, longest):
                    raise
            del failed  # its traceback holds the tensors of the work
            release_cached_memory()

    def _with_room_for(self, longest: int) -> int | None:
        return max(self.num_tokens, longest) if self.is_auto and self.num_tokens is not None else self.num_tokens

    def _is_lowered_to(self, num_tokens: int, num_rows: int, longest: int) -> bool:
        """Lowers the limit; whether the work is now split into smaller batches."""
        before = self._with_room_for(longest)
        if num_rows == 1 or (before is not None and max(num_tokens, longest) >= before):
            return False
        self.num_tokens = num_tokens
        _log.warning(
            f"out of memory with {num_rows} rows at once: from here on at most {num_tokens:,} tokens are read at once"
        )
        return True


def out_of_memory(
    error: OutOfMemoryError, config: RunConfig, step: int, kept: int | None, is_evaluation: bool = False
) -> TrainingError:
    """The error of a run that ran out of memory.

    Args:
        error: The rows that did not fit.
        config: The run's.
        step: The step that failed, or the last one before the evaluation.
        kept: The step of the checkpoint that it keeps; None if it has none yet.
        is_evaluation: Whether it evaluated.
    """
    evaluation = f"the evaluation after step {step}" if step else "the evaluation before the first step"
    where = evaluation if is_evaluation else f"step {step}"
    checkpoint = "no checkpoint yet" if kept is None else f"its checkpoint of step {kept}"
    received = f"{where}: {error.received}; {config.train.output_dir} keeps {checkpoint}"
    now, anew = _saving(error, config, is_evaluation), _saving_with_other_steps(config)
    remedy = f"start a new run with {' or '.join(anew)}"
    if now:
        remedy = f"set {' or '.join(now)} and {'start again' if kept is None else 'go on with --resume'}, or {remedy}"
    return TrainingError(received, error.expected, remedy[0].upper() + remedy[1:])


def _saving(error: OutOfMemoryError, config: RunConfig, is_evaluation: bool) -> list[str]:
    """The settings that save memory, with which the run can go on."""
    train, is_many, found = config.train, error.num_rows > 1, list[str]()
    if is_many and train.max_batch_tokens != "auto":
        found.append(f"train.max_batch_tokens: auto (or {error.num_tokens // 2})")
    if is_many and is_evaluation:
        found.append(f"train.per_device_eval_batch_size: {error.num_rows // 2}")
    if not is_evaluation and not train.gradient_checkpointing:
        found.append("train.gradient_checkpointing: true")
    return found


def _saving_with_other_steps(config: RunConfig) -> list[str]:
    """The settings that save memory and change what is trained."""
    smaller = {"none": ["model.quantization: int8 or int4"], "int8": ["model.quantization: int4"]}
    return [*smaller.get(config.model.quantization, []), "a lower data.max_length"]
