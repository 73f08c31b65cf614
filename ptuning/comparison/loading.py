"""Brings a way back that a comparison saved, to answer rows with it.

Knows nothing of how it was fitted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptuning.comparison.documents import Documented
from ptuning.comparison.features import Counted, Featured
from ptuning.comparison.heads import Headed
from ptuning.comparison.prompting import Prompted
from ptuning.comparison.protocol import Fitted, Writer, Writing
from ptuning.comparison.retrieval import Retrieved
from ptuning.comparison.storage import OWN_FILE, Saved, read_own
from ptuning.comparison.tuning import Tuned
from ptuning.comparison.weights import Trained
from ptuning.data import Row, Rows, Task, Template, as_row, records
from ptuning.errors import PromptError
from ptuning.inference import Classification
from ptuning.model import Backbone

LOADERS: Mapping[str, Callable[[Saved], Fitted]] = {
    "prompting": Prompted.load,
    "tf-idf": Counted.load,
    "retrieval": Retrieved.load,
    "documents": Documented.load,
    "features": Featured.load,
    "prompt-tuning": Tuned.load,
    "output-layers": Headed.load,
    "lora": Prompted.load,  # the adapter is merged into the base
    "last-block": Trained.load,
    "all-weights": Trained.load,
}
"""Kind -> what brings it back."""
_NEEDS_NO_BASE = ("tf-idf",)


@dataclass(frozen=True)
class LoadedWay:
    """A way that answers rows."""

    kind: str
    """One of `LOADERS`."""
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
        SkippedError: For a way whose package is missing.
    """
    path = Path(directory)
    path = path / "way" if (path / "way" / OWN_FILE).exists() else path
    own, task = read_own(path)
    kind = own["kind"]
    if kind not in LOADERS:
        raise PromptError(f"{path}, a way of the kind {kind}", f"one of {', '.join(LOADERS)}", "Upgrade ptuning")
    base = None if kind in _NEEDS_NO_BASE else _base(path, own, backbone, device)
    saved = Saved(path, own, task, base)
    fitted = LOADERS[kind](saved)
    if saved.writing is not None and not isinstance(fitted, Writer):
        raise saved.broken(f"a way of the kind {kind} writes nothing")
    return LoadedWay(kind, task, fitted, saved.writing)


def _base(path: Path, own: Mapping[str, Any], backbone: Backbone | None, device: str) -> Backbone:
    """The base of a way, with its adapter where it has one; raises `PromptError` for another base."""
    has_adapter = own["kind"] == "lora"
    if has_adapter and backbone is not None:
        raise PromptError(f"{path} with a loaded base", "a base that is loaded with the adapter", "Leave it out")
    backbone = backbone or Backbone.from_pretrained(own["base"], own["dtype"], device)
    if backbone.fingerprint.weights != tuple(own["fingerprint"]["weights"]):
        raise PromptError(f"the base {backbone.name}", f"{own['base']}, with which {path} was fitted", "Give that one")
    return backbone.with_adapter(path / "adapter") if has_adapter else backbone
