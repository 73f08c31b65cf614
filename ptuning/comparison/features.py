"""Ways that fit scikit-learn's logistic regression: to the base's last hidden state, or to TF-IDF without any base.

Knows nothing of prompts or training steps.
"""

import importlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy
import torch
from torch import Tensor

from ptuning.comparison.protocol import Fact, Facts, Fitted, Job, SkippedError, Way, labels_of, require_package
from ptuning.comparison.reading import hidden_states, plain_text
from ptuning.comparison.storage import Saved, write_own, write_tensors
from ptuning.data import Row, Task
from ptuning.model import Backbone

PENALTIES = tuple(10.0**k for k in range(-4, 3))
"""The values of C that cross-validation chooses from."""
_MOST_FOLDS = 5
_MOST_ITERATIONS = 1000
POOLINGS = ("last token", "mean")
_FEATURES_FILE, _COUNTS_FILE = "classifier.safetensors", "tf_idf.safetensors"


@dataclass
class Featured(Fitted):
    """A linear classifier on the frozen base's last hidden state."""

    backbone: Backbone
    """The frozen model."""
    task: Task
    """The words."""
    pooling: str
    """Which hidden state is taken: one of `POOLINGS`."""
    mean_H: Tensor
    """What is taken from each hidden state."""
    scale_H: Tensor
    """What it is divided by."""
    weight_CH: Tensor
    """The classifier's weights."""
    bias_C: Tensor
    """Its intercepts."""
    num_trained: int = 0
    chosen: Mapping[str, str] = field(default_factory=dict)

    def label_scores(self, rows: Sequence[Row]) -> Tensor:
        """As in `Fitted`."""
        state_NH = hidden_states(self.backbone, self.task, rows)[POOLINGS.index(self.pooling)]
        return ((state_NH - self.mean_H) / self.scale_H) @ self.weight_CH.T + self.bias_C

    def save(self, directory: Path) -> None:
        """As in `Fitted`."""
        names = ("mean_H", "scale_H", "weight_CH", "bias_C")
        write_own(directory, {"kind": "features", "task": vars(self.task), "pooling": self.pooling})
        write_tensors(directory / _FEATURES_FILE, {name: getattr(self, name) for name in names})

    @classmethod
    def load(cls, saved: Saved) -> Self:
        """Brings it back."""
        width, num_labels = saved.base.width, saved.num_labels
        shapes = {"mean_H": [width], "scale_H": [width], "weight_CH": [num_labels, width], "bias_C": [num_labels]}
        found = saved.tensors(_FEATURES_FILE, shapes)
        mean_H, scale_H, weight_CH, bias_C = (found[name] for name in shapes)
        return cls(saved.base, saved.task, saved.told("pooling"), mean_H, scale_H, weight_CH, bias_C)


class Features(Way):
    """Logistic regression on the last hidden state; validation rows choose the state, cross-validation the penalty."""

    name, title = "features", "logistic regression on the frozen base's last hidden state"
    depends_on_chance, writes = False, False
    facts: ClassVar[Facts] = Facts(
        learns=True,
        many_tasks=Fact(True, "a small classifier a task on the same hidden states"),
        rows_count_at_once=Fact(False, "fit again, in seconds once the hidden states are there"),
        readable=Fact(False, "weights of hidden states"),
        works_in_vllm=Fact(False, "its pooling mode gives hidden states; the classifier runs elsewhere"),
    )

    def require(self, job: Job) -> None:
        """As in `Way`."""
        require_package("sklearn", "scikit-learn")

    def fit(self, job: Job) -> Featured:
        """As in `Way`."""
        labels, tried = labels_of(job.task, job.train), list[tuple[float, Featured]]()
        for pooling, state_NH in zip(POOLINGS, hidden_states(job.backbone, job.words, job.train), strict=True):
            mean_H, scale_H = state_NH.mean(dim=0), state_NH.std(dim=0, correction=0).clamp(min=1e-6)
            found, penalty = fitted_classifier(((state_NH - mean_H) / scale_H).numpy(), labels)
            weight_CH, bias_C = of_all_labels(found, len(job.task.verbalizer or ()))
            own = Featured(job.backbone, job.words, pooling, mean_H, scale_H, weight_CH, bias_C)
            own.num_trained, own.chosen = weight_CH.numel() + len(bias_C), {"state": pooling, "C": f"{penalty:g}"}
            tried.append((job.score(own), own))
        return max(tried, key=lambda each: each[0])[1]


@dataclass
class Counted(Fitted):
    """A linear classifier on TF-IDF."""

    task: Task
    """The task, whose columns are read."""
    vectorizer: Any
    """scikit-learn's."""
    weight_CV: Tensor
    """The classifier's weights."""
    bias_C: Tensor
    """Its intercepts."""
    num_trained: int = 0
    chosen: Mapping[str, str] = field(default_factory=dict)

    def label_scores(self, rows: Sequence[Row]) -> Tensor:
        """As in `Fitted`."""
        counted = self.vectorizer.transform([plain_text(self.task, row) for row in rows])
        return torch.from_numpy(numpy.asarray(counted @ self.weight_CV.numpy().T)).float() + self.bias_C

    def save(self, directory: Path) -> None:
        """As in `Fitted`."""
        words = {word: int(place) for word, place in self.vectorizer.vocabulary_.items()}
        write_own(directory, {"kind": "tf-idf", "task": vars(self.task), "words": words})
        idf_V = torch.from_numpy(self.vectorizer.idf_)
        write_tensors(directory / _COUNTS_FILE, {"weight_CV": self.weight_CV, "bias_C": self.bias_C, "idf_V": idf_V})

    @classmethod
    def load(cls, saved: Saved) -> Self:
        """Brings it back; it needs no base."""
        require_package("sklearn", "scikit-learn")
        words, num_labels = saved.told("words"), saved.num_labels
        if sorted(words.values()) != list(range(len(words))):
            raise saved.broken("its words are not numbered from 0")
        shapes = {"weight_CV": [num_labels, len(words)], "bias_C": [num_labels], "idf_V": [len(words)]}
        found = saved.tensors(_COUNTS_FILE, shapes)
        vectorizer = _vectorizer(words)
        vectorizer.idf_ = found["idf_V"].numpy()
        return cls(saved.task, vectorizer, found["weight_CV"], found["bias_C"])


class TfIdf(Way):
    """Logistic regression on TF-IDF of words and pairs of words: the floor that needs no language model."""

    name, title = "tf-idf", "logistic regression on word counts, without the base"
    depends_on_chance, writes = False, False
    facts: ClassVar[Facts] = Facts(
        learns=True,
        many_tasks=Fact(True, "it needs no base"),
        rows_count_at_once=Fact(False, "fit again, in seconds"),
        readable=Fact(True, "a weight a word"),
        works_in_vllm=Fact(False, "it needs no server for models"),
    )

    def require(self, job: Job) -> None:
        """As in `Way`."""
        require_package("sklearn", "scikit-learn")

    def fit(self, job: Job) -> Counted:
        """As in `Way`."""
        vectorizer = _vectorizer()
        counted = vectorizer.fit_transform([plain_text(job.task, row) for row in job.train])
        classifier, penalty = fitted_classifier(counted, labels_of(job.task, job.train))
        num_trained = classifier.coef_.size + classifier.intercept_.size
        weight_CV, bias_C = of_all_labels(classifier, len(job.task.verbalizer or ()))
        return Counted(job.words, vectorizer, weight_CV, bias_C, num_trained, {"C": f"{penalty:g}"})


def _vectorizer(words: Mapping[str, int] | None = None) -> Any:
    """scikit-learn's TF-IDF of words and pairs of words.

    Args:
        words: Word -> its place; None: those of the rows that it is fitted to.
    """
    kind = importlib.import_module("sklearn.feature_extraction.text").TfidfVectorizer
    return kind(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", vocabulary=words)


def fitted_classifier(features: Any, labels: Sequence[int]) -> tuple[Any, float]:
    """scikit-learn's logistic regression, and its C, chosen by cross-validation where each label has two rows or more.

    Args:
        features: One row a line, dense or sparse.
        labels: The rows' labels.
    """
    linear, selection = (importlib.import_module(f"sklearn.{name}") for name in ("linear_model", "model_selection"))
    if len(set(labels)) < 2:
        raise SkippedError("training rows of one label", "two labels or more", "Give rows of other labels")
    num_folds = min(_MOST_FOLDS, min(Counter(labels).values()))
    one_thread = importlib.import_module("threadpoolctl").threadpool_limits(1)  # more wait for each other at this size
    with one_thread, warnings.catch_warnings():
        not_converged = importlib.import_module("sklearn.exceptions").ConvergenceWarning
        warnings.simplefilter("ignore", not_converged)  # such a fit is used as it is
        plain = linear.LogisticRegression(max_iter=_MOST_ITERATIONS)
        if num_folds < 2:
            return plain.fit(features, labels), plain.C
        folds = selection.StratifiedKFold(num_folds)
        search = selection.GridSearchCV(plain, {"C": list(PENALTIES)}, cv=folds)
        search.fit(features, labels)
    return search.best_estimator_, search.best_params_["C"]


def of_all_labels(classifier: Any, num_labels: int) -> tuple[Tensor, Tensor]:
    """The weights and intercepts of all labels; a label without training rows never wins.

    scikit-learn has one line of weights for two labels: that of the second over the first.
    """
    weights, biases = classifier.coef_, classifier.intercept_
    if len(classifier.classes_) == 2:
        weights, biases = numpy.vstack([0 * weights, weights]), numpy.hstack([0 * biases, biases])
    weight_CX, bias_C = torch.zeros(num_labels, weights.shape[1]), torch.full((num_labels,), -1e9)
    places = torch.from_numpy(classifier.classes_)
    weight_CX[places] = torch.from_numpy(weights).float()
    bias_C[places] = torch.from_numpy(biases).float()
    return weight_CX, bias_C
