"""The settings of each part of a run, and what can be wrong with one part by itself.

Knows nothing of files, or of what contradicts across sections.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from ptuning.data import Task, Template
from ptuning.errors import ConfigError

_MOST = {"hidden_size": 10**6, "learning_rate": 10**4, "num_train_epochs": 10**6, "per_device_train_batch_size": 10**6}
_MOST_OF_OTHERS = 10**9
_MOST_SEEDS = 2**32


@dataclass(frozen=True)
class ModelConfig:
    """The frozen language model."""

    name_or_path: str
    """A model directory, or a model's name on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the frozen model; auto: bfloat16 where the hardware computes in it, float32 elsewhere."""
    device: str = "auto"
    """auto: the first accelerator if there is one; or cpu, cuda, cuda:1, mps."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run on this machine."""
    quantization: Literal["none", "int8", "int4"] = "none"
    """int8: the frozen weights of linear layers as 8-bit integers, a quarter of float32's memory; int4: as 4-bit
    integers, a sixth of it (both with torchao)."""


@dataclass(frozen=True)
class PromptConfig:
    """The trainable part and where it starts."""

    encoder: Literal["embedding", "mlp", "lstm", "residual", "conditioned"] = "embedding"
    """embedding: free vectors (Lester 2021); mlp, lstm: P-tuning (Liu 2021); residual: Razdaibiedina 2023;
    conditioned: reads each row's text and makes the row's own prompt."""
    hidden_size: int | None = None
    """Width of the encoder's hidden layers; null: the encoder's own default."""
    init: Literal["auto", "vocabulary", "text", "labels", "prompt", "random"] = "auto"
    """What the virtual tokens start from: frequent tokens, a text, the label words and then frequent tokens, a saved
    prompt, or chance; auto: labels where there is a verbalizer, else vocabulary."""
    init_text: str | None = None
    """With init: text, the text to start from."""
    init_prompt: str | None = None
    """With init: prompt, the directory of the saved prompt to start from, or its name on the hub."""

    def __post_init__(self) -> None:
        problems = _not_positive("prompt", self, "hidden_size")
        for kind, key in (("text", "init_text"), ("prompt", "init_prompt")):
            value = getattr(self, key)
            if (self.init == kind) != bool(value):
                problems.append(
                    ConfigError(
                        f"prompt.init: {self.init} with prompt.{key}: {value!r}",
                        f"prompt.{key} with prompt.init: {kind}, and only then",
                        f"Set both or neither of prompt.init: {kind} and prompt.{key}",
                        keys=("prompt.init", f"prompt.{key}"),
                    )
                )
        if self.encoder == "embedding" and self.hidden_size is not None and self.hidden_size > 0:
            problems.append(
                ConfigError(
                    f"prompt.encoder: embedding with prompt.hidden_size: {self.hidden_size}",
                    "hidden_size only with another encoder",
                    "Remove prompt.hidden_size, or name an encoder that has one, such as prompt.encoder: residual",
                    keys=("prompt.encoder", "prompt.hidden_size"),
                )
            )
        ConfigError.raise_any(problems)


@dataclass(frozen=True)
class DataConfig:
    """The rows and how they become text."""

    train: str | None = None
    """csv, tsv, json(l) (also .gz) or parquet file, a folder that datasets saved, or a hub data set (org/name or
    org/name:subset), of which this key's split is taken or the one behind @, as in org/name@train[:90%]; null only
    where a program gives the rows."""
    template: str = field(kw_only=True)
    """The text before the answer, with a slot for the soft prompt: "{prompt:20}Review: {text}\\nSentiment:"."""
    validation: str | None = None
    """Rows that choose the best checkpoint; same forms as train; null: validation_split sets some of train aside."""
    validation_split: float = 0.2
    """Share of the training rows set aside as validation rows where data.validation is not given, at most 1,000 rows;
    0: none."""
    test: str | None = None
    """Rows to report at the end, with and without the soft prompt; same forms as train."""
    answer: str = "{label}"
    """The answer, as columns and words; with a verbalizer, the one column that holds the label."""
    verbalizer: dict[str, str] | None = None
    """Label -> the text that stands for it, with a leading space where the answer follows a word; null: the answer is
    generated text."""
    chat_template: bool = False
    """Whether the text is the user's turn of the model's own chat template."""
    max_length: int | None = 512
    """The most tokens a row may have, prompt and answer included; longer rows lose text."""
    cut_column: str | None = None
    """The column that loses text where a row is too long; null: the longest one of the row."""
    cut_side: Literal["right", "left"] = "right"
    """Which end it loses."""

    def __post_init__(self) -> None:
        problems = _not_positive("data", self, "max_length")
        if not 0 <= self.validation_split < 1:
            received, key = f"data.validation_split: {self.validation_split}", "data.validation_split"
            problems.append(ConfigError(received, "at least 0 and below 1", "Correct it", keys=(key,)))
        try:
            Template.parse(self.template).require_slot()
        except ConfigError as error:
            problems.append(error.about("data.template"))
        try:
            Task(self.template, self.answer, self.verbalizer, cut_column=self.cut_column)
        except ConfigError as error:
            problems.append(error.about("data.answer", "data.verbalizer", "data.cut_column"))
        ConfigError.raise_any(problems)

    @property
    def task(self) -> Task:
        """How a row becomes a question and its answer."""
        cut = (self.cut_column, self.cut_side)
        return Task(self.template, self.answer, self.verbalizer, self.chat_template, self.max_length, *cut)


@dataclass(frozen=True)
class TrainConfig:
    """The run."""

    output_dir: str
    """Where the prompt, the checkpoints, the config and the metrics are written."""
    max_steps: int | None = None
    """Optimizer steps; null: as num_train_epochs says."""
    num_train_epochs: float | None = None
    """Passes over the training rows, where max_steps is null; null: 3, and at least 300 steps."""
    per_device_train_batch_size: int = 8
    """Rows a device reads at once in training."""
    max_batch_tokens: int | Literal["auto"] | None = None
    """The most tokens a device reads at once, padding and virtual tokens included: bounds memory, whatever the batch
    size; auto: no limit at first, and half of what did not fit each time memory runs out; null: no limit."""
    per_device_eval_batch_size: int = 32
    """Rows a device reads at once in evaluation."""
    group_by_length: bool = False
    """Whether rows of similar length share a batch: less padding for models that cannot pack rows."""
    balanced_sampling: bool = False
    """Whether every label is read equally often in training, rare ones several times an epoch; needs a verbalizer."""
    gradient_accumulation_steps: int = 1
    """Batches whose gradients are added up before a step."""
    learning_rate: float | Literal["auto"] = "auto"
    """Peak learning rate of AdamW; auto: what suits the encoder, in units of the vocabulary's standard deviation."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    readability: float = 0.0
    """Weight of a pull of each virtual token to its nearest token, in the loss; 0: none. A prompt near tokens can be
    put into words better, at a price in accuracy: see ptuning harden."""
    warmup_ratio: float = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    max_grad_norm: float = 1.0
    """The gradient's norm is clipped to this."""
    eval_steps: int | None = None
    """Steps between evaluations on the validation rows; null: a tenth of the run's steps, and at least 1."""
    max_eval_samples: int | None = None
    """Validation rows used during training, a fixed random sample; null: a tenth of the rows that are trained on
    between two evaluations, and at least 50."""
    metric_for_best_model: Literal["auto", "loss", "accuracy"] = "auto"
    """The metric on the validation rows that chooses the best checkpoint; auto: with a verbalizer the last one whose
    accuracy is at most a standard error below the highest, else the one of the lowest loss."""
    early_stopping_patience: int | Literal["auto"] | None = "auto"
    """Training stops after this many evaluations without improvement; auto: 5 where there are validation rows; null:
    never."""
    save_steps: int = 100
    """Steps between checkpoints."""
    logging_steps: int = 5
    """Steps between lines of metrics.jsonl."""
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Where the metrics go besides metrics.jsonl; the tracker's own package is needed."""
    gradient_checkpointing: bool = False
    """Whether layers run again in the backward pass instead of keeping their activations: less memory, slower."""
    forward: Literal["auto", "splice", "shared_prefix"] = "auto"
    """splice: the reference; shared_prefix: the prefix that all rows share runs once a step, and the rows are packed
    behind it; auto: shared_prefix where it is exact."""
    seed: int = 0
    """Seed of the initialisation and the data order."""

    def __post_init__(self) -> None:
        problems = _not_positive(
            "train",
            self,
            "max_steps",
            "num_train_epochs",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "learning_rate",
            "max_grad_norm",
            "eval_steps",
            "max_eval_samples",
            "max_batch_tokens",
            "early_stopping_patience",
            "save_steps",
            "logging_steps",
        )
        for name in ("weight_decay", "readability"):
            value, key = getattr(self, name), f"train.{name}"
            if not 0 <= value <= _MOST_OF_OTHERS:
                expected = f"at least 0, at most {_MOST_OF_OTHERS:,}"
                problems.append(ConfigError(f"{key}: {_shown(value)}", expected, "Correct it", keys=(key,)))
        if not 0 <= self.seed < _MOST_SEEDS:
            received, expected = f"train.seed: {_shown(self.seed)}", f"from 0 to {_MOST_SEEDS - 1:,}"
            problems.append(ConfigError(received, expected, "Correct it", keys=("train.seed",)))
        if not 0 <= self.warmup_ratio <= 1:
            received, key = f"train.warmup_ratio: {self.warmup_ratio}", "train.warmup_ratio"
            problems.append(ConfigError(received, "from 0 to 1", "Correct it", keys=(key,)))
        ConfigError.raise_any(problems)


def _not_positive(section: str, values: Any, *keys: str) -> list[ConfigError]:
    """The settings that are given and not above 0, or beyond what any run has use for."""
    given = {key: getattr(values, key) for key in keys if getattr(values, key) not in (None, "auto")}
    problems = []
    for key, value in given.items():
        most = _MOST.get(key, _MOST_OF_OTHERS)
        if not 0 < value <= most:
            received, expected = f"{section}.{key}: {_shown(value)}", f"a number above 0, at most {most:,}"
            problems.append(ConfigError(received, expected, "Correct it", keys=(f"{section}.{key}",)))
    return problems


def _shown(value: float) -> str:
    """A number, or the digits that it begins with."""
    return str(value) if isinstance(value, float) or abs(value) < 10**15 else f"{str(value)[:9]}..."
