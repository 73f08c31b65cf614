"""A distillation's config: a training run's sections, and one on the text that virtual tokens take the place of.

Knows nothing of how a config is read, or of how a teacher works.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ptuning.config.reading import WholeConfig
from ptuning.config.run import RunConfig
from ptuning.config.sections import DataConfig, ModelConfig, PromptConfig, TrainConfig
from ptuning.data import Template
from ptuning.errors import ConfigError

_MOST = {"demonstrations": 1000, "max_new_tokens": 4096, "top_k": 10**6}


@dataclass(frozen=True)
class DistillConfig:
    """The text, and how the teacher that reads it is imitated."""

    text: str | None = None
    """The text that the virtual tokens take the place of: an instruction, a document, a system prompt."""
    text_file: str | None = None
    """A file that holds it; in place of text."""
    demonstrations: int = 0
    """Training rows with their answers that stand behind the text, labels in turn; a row that is one of them is read
    without itself."""
    answers: Literal["teacher", "rows"] = "teacher"
    """Whose answers are imitated token by token: those that the teacher gives or writes, or the rows' own."""
    max_new_tokens: int = 64
    """The most tokens that the teacher writes behind a row, where there is no data.verbalizer."""
    stop: str | None = None
    """A text that ends what the teacher writes, beside the model's end-of-text token; the student ends with that token
    there. null: a blank line where there are demonstrations, else none."""
    top_k: int = 64
    """How many of the teacher's most likely tokens are kept at each position; the others count as one."""
    start: Literal["chunks", "first_tokens"] = "chunks"
    """What the virtual tokens start from: the means of as many pieces of the text, or its first tokens."""
    baselines: bool = True
    """Whether the text cut to as many tokens, fewer demonstrations and a prompt that is tuned on the rows' own answers
    are measured beside it."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """What ends a written answer, beside the end-of-text token."""
        return (self.stop,) if self.stop else ("\n\n",) if self.demonstrations else ()

    def __post_init__(self) -> None:
        problems = []
        if self.text is not None and self.text_file is not None:
            received, keys = "distill.text and distill.text_file", ("distill.text", "distill.text_file")
            problems.append(ConfigError(received, "one of them", "Remove one", keys=keys))
        if not self.text and self.text_file is None and not self.demonstrations:
            received = "no distill.text, distill.text_file or distill.demonstrations"
            expected = "a text that the virtual tokens take the place of"
            problems.append(ConfigError(received, expected, "Write one of them", keys=("distill.text",)))
        for name, most in _MOST.items():
            value, key = getattr(self, name), f"distill.{name}"
            least = 0 if name == "demonstrations" else 1
            if not least <= value <= most:
                problems.append(ConfigError(f"{key}: {value}", f"from {least} to {most:,}", "Correct it", keys=(key,)))
        ConfigError.raise_any(problems)


@dataclass(frozen=True)
class DistillationConfig(WholeConfig):
    """A whole distillation, as written in a YAML file."""

    model: ModelConfig
    prompt: PromptConfig
    data: DataConfig
    train: TrainConfig
    distill: DistillConfig

    command: ClassVar[str] = "ptuning distill"
    """The command whose help lists the settings."""

    def __post_init__(self) -> None:
        ConfigError.raise_any(self.contradictions(self))

    @property
    def run(self) -> RunConfig:
        """The training run's part of it."""
        return RunConfig(self.model, self.prompt, self.data, self.train)

    @staticmethod
    def contradictions(sections: Any) -> list[ConfigError]:
        """What contradicts across sections, as in `RunConfig.contradictions`."""
        problems, data = RunConfig.contradictions(sections), sections.data
        if sections.prompt.encoder == "conditioned":
            problems.append(
                ConfigError(
                    "prompt.encoder: conditioned in a distillation",
                    "an encoder whose prompt is the same for all rows, as the text is",
                    "Choose another encoder",
                    keys=("prompt.encoder",),
                )
            )
        problems += _not_one_slot(data.template)
        parts = Template.parse(data.answer).parts if data.answer else ()
        if len(parts) != 1 or not Template.parse(data.answer).field_names:
            problems.append(
                ConfigError(
                    f"data.answer: {data.answer!r} in a distillation",
                    "one column alone, such as {label}, which takes the teacher's answer",
                    "Name one column",
                    keys=("data.answer",),
                )
            )
        return problems


def _not_one_slot(template: str) -> list[ConfigError]:
    """A template whose text has no single place."""
    try:
        sizes = Template.parse(template).slot_sizes
    except ConfigError:
        return []  # the data section tells it
    if len(sizes) <= 1:
        return []
    received = f"data.template with {len(sizes)} slots in a distillation"
    return [ConfigError(received, "one slot, where the text stands", "Leave one", keys=("data.template",))]
