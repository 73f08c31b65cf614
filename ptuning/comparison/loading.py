"""Brings a way back that a comparison saved, to answer rows with it.

Knows nothing of how it was fitted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from ptuning.comparison.features import Featured
from ptuning.comparison.prompting import OWN_FILE, Prompted
from ptuning.comparison.protocol import Fitted, Writer, Writing
from ptuning.comparison.schema import OwnFile
from ptuning.comparison.tuning import Tuned
from ptuning.data import Row, Rows, Task, Template, as_row, records
from ptuning.errors import FileError, PromptError
from ptuning.files import read_regular
from ptuning.inference import Classification
from ptuning.model import Backbone
from ptuning.prompts import SoftPrompt
from ptuning.typed import read_json

_MOST_BYTES = 1 << 30
KINDS = ("prompting", "prompt-tuning", "features", "lora")
"""What can be brought back."""


@dataclass(frozen=True)
class LoadedWay:
    """A way that answers rows."""

    kind: str
    """One of `KINDS`."""
    task: Task
    """What rows must hold, and the labels."""
    fitted: Fitted
    """What scores them."""
    writing: Writing | None = None
    """When a written answer ends; None: it answers with labels."""

    def classify(self, rows: Rows) -> list[Classification]:
        """The most likely label of each row, and every label's probability.

        Args:
            rows: One mapping per row, with the template's columns, or a text if it has one column.

        Raises:
            DataError: For a row that lacks a column or does not fit.
            PromptError: For a way that writes texts.
        """
        if self.writing is not None:
            raise PromptError(
                f"classify with a way of the kind {self.kind}, which has no labels", "labels", "Use generate"
            )
        asked = self._asked(rows)
        if not asked:
            return []
        labels = tuple(self.task.verbalizer or ())
        probabilities = self.fitted.label_scores(asked).softmax(dim=1).tolist()
        found = [dict(zip(labels, own, strict=True)) for own in probabilities]
        return [Classification(max(own, key=own.__getitem__), own) for own in found]

    def generate(self, rows: Rows) -> list[str]:
        """The answer that it writes to each row, as in the comparison.

        Args:
            rows: As in `classify`.

        Raises:
            DataError: As in `classify`.
            PromptError: For a way that answers with labels.
        """
        if self.writing is None:
            raise PromptError(
                f"generate with a way of the kind {self.kind}, which has labels", "a way that writes", "Use classify"
            )
        assert isinstance(self.fitted, Writer)
        asked = self._asked(rows)
        return self.fitted.answers(asked, self.writing) if asked else []

    def _asked(self, rows: Rows) -> list[Row]:
        columns = Template.parse(self.task.template).field_names
        return [as_row(each, f"row {i}", columns) for i, each in enumerate(records(rows))]


def load_way(directory: str | Path, backbone: Backbone | None = None, *, device: str = "auto") -> LoadedWay:
    """Brings back a way that `compare` saved.

    Args:
        directory: A part of a comparison, such as `runs/compare/few-shot/all-rows/seed-0`, or its folder `way`.
        backbone: The base, loaded; None: it is loaded as the way names it, in the precision that it was fitted in.
        device: Where it is loaded to.

    Raises:
        PromptError: For a directory that holds no way, one that cannot be brought back, or another base.
    """
    path = Path(directory)
    path = path / "way" if (path / "way" / OWN_FILE).exists() else path
    own = _read_own(path)
    kind, base, writing = own["kind"], own["base"], _writing(own)
    if kind not in KINDS:
        raise PromptError(f"{path}, a way of the kind {kind}", f"one of {', '.join(KINDS)}", "Compare again to use it")
    if backbone is None:
        adapter = str(path / "adapter") if kind == "lora" else base
        backbone = Backbone.from_pretrained(adapter, own["dtype"], device)
    elif kind == "lora":
        raise PromptError(f"{path} with a loaded base", "a base that is loaded with the adapter", "Leave it out")
    elif backbone.fingerprint.weights != tuple(own["fingerprint"]["weights"]):
        raise PromptError(f"the base {backbone.name}", f"{base}, with which {path} was fitted", "Give that one")
    if kind == "prompt-tuning":
        prompt = SoftPrompt.load(path / "prompt")
        assert prompt.task is not None
        return LoadedWay(kind, prompt.task, Tuned(backbone, prompt), writing)
    task = Task(**own["task"])
    if kind == "features":
        return LoadedWay(kind, task, Featured(backbone, task, own["pooling"], **_tensors(path)))
    fitted = Prompted(backbone, task, shown=own.get("shown"))
    return LoadedWay(kind, fitted.asked_task, fitted, writing)


def _read_own(path: Path) -> dict[str, Any]:
    try:
        return read_json(read_regular(path / OWN_FILE, _MOST_BYTES), OwnFile)
    except FileError as error:
        raise PromptError(f"{path} holds no way ({error.received})", "a part of a comparison", "Check it") from error
    except ValueError as error:
        raise PromptError(f"{path / OWN_FILE} is broken ({error})", "what compare wrote", "Compare again") from error


def _writing(own: dict[str, Any]) -> Writing | None:
    ends = own.get("writing")
    return None if ends is None else Writing(ends["max_new_tokens"], tuple(ends["stop_strings"]))


def _tensors(path: Path) -> dict[str, Any]:
    file = path / "classifier.safetensors"
    try:
        return load(read_regular(file, _MOST_BYTES))
    except (SafetensorError, FileError) as error:
        raise PromptError(f"{file} is broken ({error})", "what compare wrote", "Compare again") from error
